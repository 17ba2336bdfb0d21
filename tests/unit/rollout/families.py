"""Tiny models of several families with random weights, prompts for them, and their sampler."""

from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from opd.data.batch import Prompt, Sampling
from opd.model.load import attention
from opd.model.rope import fix_frequencies
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
    "phi3-longrope": (
        transformers.Phi3Config,
        {
            **SIZES,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "short_factor": [1.0, 1.1],
                "long_factor": [2.0, 9.0],
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "llama-dynamic": (
        transformers.LlamaConfig,
        {
            **SIZES,
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
        },
    ),
    "gemma3-dynamic": (
        transformers.Gemma3TextConfig,
        {
            **SIZES,
            "head_dim": 8,
            "sliding_window": 6,
            "num_hidden_layers": 6,
            "max_position_embeddings": 16,
            "rope_parameters": {
                "full_attention": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
    "gemma2-capped": (
        transformers.Gemma2Config,
        {**SIZES, "head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 0.5, "final_logit_softcapping": None},
    ),
    "granite-scaled": (
        transformers.GraniteConfig,
        {**SIZES, "logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.3},
    ),
    "cohere-scaled": (transformers.CohereConfig, {**SIZES, "logit_scale": 0.25}),
    "phi-biased": (transformers.PhiConfig, {**SIZES, "initializer_range": 0.1}),
    "opt": (
        transformers.OPTConfig,
        {
            **{key: value for key, value in SIZES.items() if key != "initializer_range"},
            "word_embed_proj_dim": 16,
            "ffn_dim": 24,
            "init_std": 0.4,
        },
    ),
    "bloom": (
        transformers.BloomConfig,
        {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.4},
    ),
}
LEAN = {"qwen3", "qwen3-tied", "qwen2", "llama", "llama-biased", "qwen3-wide"}


def build(
    family: str = "qwen3", dtype: torch.dtype = torch.float32, *, longest: int | None = 64, **changes
) -> PreTrainedModel:
    """A model as a run has it, whose texts have at most `longest` tokens; None: as transformers has it."""
    config_class, sizes = FAMILIES[family]
    config = config_class(**{**sizes, **changes})
    capped = {"attn_implementation": attention(config)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config, **capped)
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # biases and norms at their initial values would hide a mistake
                torch.nn.init.normal_(weight, 0.0 if "bias" in name else 1.0, 0.3)
    if dtype == torch.float64 and "moe" in family:
        model.set_experts_implementation("eager")  # the fast one knows no float64
    if longest is not None:
        fix_frequencies(model, longest)
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
    """Norms and attention of a float64 model in float64: transformers rounds their inputs to float32, which hides the
    last digits.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        weight = self.weight if hasattr(self, "variance_epsilon") else 1 + self.weight
        return weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps)

    for family in ("qwen3", "qwen2", "llama", "mistral", "phi3", "gemma2", "gemma3", "granite"):
        norm = f"transformers.models.{family}.modeling_{family}.{family.capitalize()}RMSNorm"
        monkeypatch.setattr(f"{norm}.forward", forward)

    def centred(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden - hidden.mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr("transformers.models.cohere.modeling_cohere.CohereLayerNorm.forward", centred)
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda weights, dim=-1, dtype=None: softmax(weights, dim=dim))


def warp(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What `generate` draws from."""
    no_ids: Any = torch.zeros(len(logits), 1, dtype=torch.long)
    scores: Any = TemperatureLogitsWarper(sampling.temperature)(no_ids, logits)  # pyright: ignore
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(no_ids, scores)
    return TopPLogitsWarper(sampling.top_p)(no_ids, scores) if sampling.top_p < 1 else scores
