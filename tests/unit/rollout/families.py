"""Tiny models of several families with random weights, prompts for them, and their sampler."""

from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from opd.data.batch import Prompt, Sampling
from opd.rollout.sampler import TransformersSampler
from tests.unit.small import root

VOCAB = 13
PAD, STOPS = 0, (1, 2)
PLAIN = Sampling(num_samples=3, max_tokens=20, temperature=1.0, top_p=1.0, top_k=0)
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": list(STOPS),
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.4}
FAMILIES: dict[str, tuple[type, dict]] = {
    "qwen3": (transformers.Qwen3Config, {**SIZES, "head_dim": 8}),
    "qwen3-tied": (transformers.Qwen3Config, {**SIZES, "head_dim": 8, "tie_word_embeddings": True}),
    "qwen3-moe": (
        transformers.Qwen3MoeConfig,
        {**SIZES, "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2": (transformers.Qwen2Config, SIZES),
    "llama": (transformers.LlamaConfig, SIZES),
    "llama-biased": (transformers.LlamaConfig, {**SIZES, "attention_bias": True, "mlp_bias": True}),
    "qwen3-wide": (transformers.Qwen3Config, {**SIZES, "head_dim": 8, "hidden_size": 64, "intermediate_size": 12_000}),
    "llama-rope-scaled": (
        transformers.LlamaConfig,
        {**SIZES, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
    ),
    "gpt2": (transformers.GPT2Config, {**GPT2, "eos_token_id": 1, "bos_token_id": None}),
    "mistral-sliding": (transformers.MistralConfig, {**SIZES, "sliding_window": 6}),
    "gemma3-mixed": (
        transformers.Gemma3TextConfig,
        {**SIZES, "head_dim": 8, "sliding_window": 6, "num_hidden_layers": 6},
    ),
    "bloom": (
        transformers.BloomConfig,
        {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.4},
    ),
}
LEAN = {"qwen3", "qwen3-tied", "qwen2", "llama", "llama-biased", "qwen3-wide"}


def build(family: str = "qwen3", dtype: torch.dtype = torch.float32, **changes) -> PreTrainedModel:
    config_class, sizes = FAMILIES[family]
    config = config_class(**{**sizes, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # biases and norms at their initial values would hide a mistake
                torch.nn.init.normal_(weight, 0.0 if "bias" in name else 1.0, 0.3)
    if dtype == torch.float64 and "moe" in family:
        model.set_experts_implementation("eager")  # the fast one knows no float64
    return model.to(dtype).eval()


def prompts(count: int = 7) -> list[Prompt]:
    generator = torch.Generator().manual_seed(2)
    lengths = [3, 1, 5, 2, 9, 5, 4] * 100
    return [
        Prompt(f"p{index}", "", "", "", tuple(torch.randint(3, VOCAB, (length,), generator=generator).tolist()))
        for index, length in enumerate(lengths[:count])
    ]


def sampler(model: PreTrainedModel, dtype: Any = "float32", max_batch_tokens: int = 10_000) -> TransformersSampler:
    return TransformersSampler(root(model), stop_ids=STOPS, pad_id=PAD, dtype=dtype, max_batch_tokens=max_batch_tokens)


def double_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of a float64 model in float64: transformers rounds their input to float32, which hides the last digits."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    for family in ("qwen3.modeling_qwen3.Qwen3", "qwen2.modeling_qwen2.Qwen2", "llama.modeling_llama.Llama"):
        monkeypatch.setattr(f"transformers.models.{family}RMSNorm.forward", forward)


def warp(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What `generate` draws from."""
    no_ids: Any = torch.zeros(len(logits), 1, dtype=torch.long)
    scores: Any = TemperatureLogitsWarper(sampling.temperature)(no_ids, logits)  # pyright: ignore
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(no_ids, scores)
    return TopPLogitsWarper(sampling.top_p)(no_ids, scores) if sampling.top_p < 1 else scores
