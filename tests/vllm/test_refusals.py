"""What vLLM cannot do here is said in one sentence, before a run samples anything."""

import pytest
import torch

from opd.errors import UserError
from tests.unit.rollout import families
from tests.vllm.models import build

CASES = {
    "heads its attention has no kernel for": (
        {"head_dim": 8}, {}, r"rollout=vllm: vLLM cannot run .*head_dim=8.*; sample with rollout=transformers$"),
    "more than the positions": ({}, {"max_model_len": 513}, "rollout.max_model_len=513: .* has 512 positions"),
    "both memory knobs": ({}, {"gpu_memory_utilization": 0.5}, "give one of the two, and null for the other"),
    "no memory knob": ({}, {"kv_cache_bytes": None}, "give one of the two, and null for the other"),
    "a share of a GPU that is not there": (
        {}, {"kv_cache_bytes": None, "gpu_memory_utilization": 0.5}, "rollout.kv_cache_bytes: .* on a CPU"),
    "too little memory": (
        {}, {"kv_cache_bytes": 100_000}, r"rollout.kv_cache_bytes=100000: not enough memory for the keys and values"),
    "more ranks than there are": (
        {}, {"tensor_parallel_size": 2}, "rollout.tensor_parallel_size=2: must divide the ranks of this run, 1"),
    "a stop token that is none": ({}, {"stop_ids": (99,)}, r"The stop tokens of .* are \[99\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused(case: str, start):
    architecture, knobs, said = CASES[case]
    with pytest.raises(UserError, match=said) as refused:
        start(build("qwen3", **architecture), **knobs)
    assert "\n" not in str(refused.value)


def test_a_family_that_vllm_has_not(start):
    import transformers

    config = transformers.CTRLConfig(vocab_size=13, n_positions=64, n_embd=64, dff=64, n_layer=1, n_head=2)
    with torch.random.fork_rng(devices=[]), pytest.raises(UserError, match=r"rollout=vllm: vLLM can.*CTRLLMHeadModel"):
        start(transformers.CTRLLMHeadModel(config), max_model_len=64)


def test_a_layer_that_it_cannot_renew(start, monkeypatch: pytest.MonkeyPatch):
    """As experts are on CPUs, which it lays out anew; a first engine of a dense model leaves them no group here."""
    sampler = start(build("qwen3"))

    def failing(*_, **__) -> None:
        raise RuntimeError("The size of tensor a (64) must match")

    monkeypatch.setattr(sampler.llm, "collective_rpc", failing)
    with pytest.raises(UserError, match=r"rollout=vllm: vLLM cannot take over .*\(64\).*; use rollout=transformers$"):
        sampler.sync()


def test_after_a_refusal_another_may_start(start):
    assert len(start(build("qwen3")).sample(families.prompts(), families.PLAIN, key=(1,))) == 21


def test_logits_that_are_no_numbers(start):
    """As its CPU kernels give with capped attention."""
    broken = build("qwen3")
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)  # pyright: ignore
    with pytest.raises(
        UserError, match=r"vLLM cannot run .* \(its logits are NaN .*; sample with rollout=transformers$"
    ):
        start(broken)
