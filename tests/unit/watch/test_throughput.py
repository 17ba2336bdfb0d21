"""Model FLOPs against torch's own count of the products that really run, and what a step's line says of them."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from docs.families import small
from opd.data.batch import Rollout
from opd.model.forward import micro_batches, response_hidden
from opd.ranks.dist import Ranks
from opd.watch import throughput
from opd.watch.throughput import Meter, peak_tflops, work_of
from tests.forks import forked

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,  # not hidden_size / heads
    "max_position_embeddings": 64,
}
CPU = torch.device("cpu")


def model_of(tied: bool, key_heads: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=key_heads, tie_word_embeddings=tied)).eval()


def rollout_of(lengths: list[tuple[int, int]]) -> Rollout:
    """Rows of (prompt tokens, response tokens)."""
    prompt, response = (torch.tensor(each)[:, None] for each in zip(*lengths, strict=True))
    prompt_mask = torch.arange(int(prompt.max())) >= int(prompt.max()) - prompt
    mask = torch.arange(int(response.max())) < response
    return Rollout(
        prompt=prompt_mask.long() * 3,
        prompt_mask=prompt_mask,
        tokens=mask.long() * 4,
        mask=mask,
        learned=mask,
        rollout_logp=torch.zeros(mask.shape),
        group=torch.arange(len(lengths)),
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_model_flops_match_torch(tied: bool, key_heads: int):
    """Exactly: a micro-batch a row, so that nothing is padded, and attention as the two products that it is."""
    model, rollout = model_of(tied, key_heads), rollout_of([(5, 7), (9, 4), (1, 12)])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        for micro in micro_batches(rollout, max_tokens=1):
            hidden = response_hidden(model, micro, CPU)
            (hidden @ model.get_output_embeddings().weight.T).sum().backward()
    work = work_of(model)
    assert work is not None and work.learning(rollout) == counted.get_total_flops()


def test_model_flops_of_layers_with_heads_of_their_own_size():
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma4TextConfig(
        **{
            **SIZES,
            "num_key_value_heads": 4,
            "layer_types": kinds,
            "global_head_dim": 24,
            "tie_word_embeddings": False,
        },
        **{"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 50, "sliding_window": 64},
    )
    model, rollout = Gemma4ForCausalLM(config).eval(), rollout_of([(5, 7), (9, 4), (1, 12)])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        for micro in micro_batches(rollout, max_tokens=1):
            (response_hidden(model, micro, CPU) @ model.lm_head.weight.T).sum().backward()
    work = work_of(model)
    assert work is not None and work.learning(rollout) == counted.get_total_flops()


@pytest.mark.parametrize("family", ["mamba", "qwen3_next", "falcon_h1", "deepseek_v3"])
def test_no_flops_for_states_and_mixtures_of_experts(family: str):
    tokens = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    assert work_of(small.model_of(family, tokens)) is None


def test_frozen_weights_flops():
    model, rollout = model_of(False, 2), rollout_of([(5, 7), (9, 4)])
    model.model.layers[1].mlp.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        for micro in micro_batches(rollout, max_tokens=1):
            (response_hidden(model, micro, CPU) @ model.lm_head.weight.T).sum().backward()
    work, whole = work_of(model), work_of(model_of(False, 2))
    assert work is not None and whole is not None
    assert work.learning(rollout) == counted.get_total_flops() < whole.learning(rollout)


def test_untied_embedding_has_no_flops():
    tied, untied = work_of(model_of(True, 2)), work_of(model_of(False, 2))
    assert tied == untied


def test_no_flops_for_mixtures_of_experts():
    config = Qwen3MoeConfig(
        **SIZES, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    )
    assert work_of(Qwen3MoeForCausalLM(config)) is None


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5),
        ("NVIDIA A10", "bfloat16", 125.0),
        ("NVIDIA L40S", "bfloat16", 362.0),
        ("NVIDIA L4", "bfloat16", 121.0),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("NVIDIA A10G", "bfloat16", None),
        ("Some card of tomorrow", "bfloat16", None),
    ],
)
def test_peak_tflops_by_device(name: str, dtype: str, peak: float | None):
    assert peak_tflops(name, dtype) == peak


def test_throughput_metrics(monkeypatch: pytest.MonkeyPatch):
    now = iter([100.0, 100.0, 104.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(now))
    model, rollout = model_of(True, 2), rollout_of([(5, 7), (9, 4)])
    meter = Meter(model, Ranks(0, 1, CPU, grouped=False), "float32")
    meter.begin()
    meter.count(rollout)
    line = meter.metrics(11.0, {"time/student": 0.5, "time/backward": 1.5, "time/rollout": 2.0})
    assert line["time/step"] == 4.0 and line["throughput/tokens_per_second"] == 11 / 4
    work = work_of(model)
    assert work is not None and line["throughput/model_tflops"] == work.learning(rollout) / 2.0 / 1e12
    assert "throughput/mfu" not in line
    meter.peak = 10 * line["throughput/model_tflops"]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: 104.0)
    assert meter.metrics(11.0, {"time/student": 0.5, "time/backward": 1.5})["throughput/mfu"] == pytest.approx(0.1)


def test_peak_memory_includes_freed_memory():
    """In a process of its own, which has not held much before."""
    process = forked(hold_for_a_moment)
    process.join()
    assert process.exitcode == 0


def hold_for_a_moment() -> None:
    before = throughput.peak_memory(CPU)
    torch.ones(before // 4 + (256 << 20)).sum()
    assert throughput.peak_memory(CPU) >= before + (128 << 20)


def test_flops_are_averaged_over_ranks(monkeypatch: pytest.MonkeyPatch):
    model, rollout = model_of(True, 2), rollout_of([(5, 7)])
    meter = Meter(model, Ranks(0, 2, CPU, grouped=False), "float32")
    monkeypatch.setattr(Ranks, "gather", lambda self, own: [own, (3 * own[0], 5e9)])
    meter.begin()
    meter.count(rollout)
    own = meter.flops
    line = meter.metrics(1.0, {"time/backward": 1.0})
    assert line["throughput/model_tflops"] == pytest.approx(2 * own / 1e12) and line["memory/peak_gb"] >= 5
