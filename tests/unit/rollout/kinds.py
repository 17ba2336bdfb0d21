"""Small models of every kind of state that a family may have, logits of realistic size, and how each is sampled."""

import torch
import transformers
from transformers import PreTrainedModel

from tests.unit.rollout.families import SIZES, VOCAB

WIDE = {**SIZES, "hidden_size": 32, "intermediate_size": 48}
HEADS = {**WIDE, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
BARE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": None, "eos_token_id": 1}

BATCH, STATE, NO_CACHE = "continuous batching", "generate", "generate without a cache"
KINDS: dict[str, tuple[str, type, dict]] = {
    "plain": (BATCH, transformers.Qwen3Config, HEADS),
    "capped logits and attention": (
        BATCH,
        transformers.Gemma2Config,
        {**HEADS, **SLIDING, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 5.0},
    ),
    "scaled logits": (BATCH, transformers.GraniteConfig, {**WIDE, "logits_scaling": 3.0, "attention_multiplier": 0.3}),
    "sinks and experts": (
        BATCH,
        transformers.GptOssConfig,
        {**HEADS, **SLIDING, **LOCAL_EXPERTS, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    ),
    "latent attention": (
        BATCH,
        transformers.DeepseekV3Config,
        {
            **WIDE,
            "num_key_value_heads": 4,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "shared keys and values": (
        BATCH,
        transformers.Gemma4TextConfig,
        {
            **HEADS,
            "sliding_window": 6,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "tie_word_embeddings": False,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "chunked attention": (
        STATE,
        transformers.Llama4TextConfig,
        {
            **HEADS,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 6,
            "num_local_experts": 4,
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    "delta rule and experts": (
        STATE,
        transformers.Qwen3NextConfig,
        {**HEADS, **EXPERTS, **DELTA, "shared_expert_intermediate_size": 16},
    ),
    # transformers fails for want of a layer that counts tokens.
    "delta rule alone": (
        NO_CACHE,
        transformers.Qwen3_5TextConfig,
        {**HEADS, **DELTA, "layer_types": ["linear_attention"] * 2},
    ),
    "attention and Mamba in a layer": (STATE, transformers.FalconH1Config, {**WIDE, **MAMBA, "mamba_d_ssm": 64}),
    "attention and Mamba in turn": (
        STATE,
        transformers.GraniteMoeHybridConfig,
        {**WIDE, **MAMBA, **LOCAL_EXPERTS, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 24},
    ),
    "Mamba 2": (
        STATE,
        transformers.Mamba2Config,
        {**BARE, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    ),
    "convolutions": (STATE, transformers.Lfm2Config, {**WIDE, "layer_types": ["conv", "full_attention"]}),
    # transformers' cache mixes up the rows of a batch.
    "RWKV": (NO_CACHE, transformers.RwkvConfig, {**BARE, "attention_hidden_size": 32, "context_length": 64}),
}


def build(kind: str, *, longest: float = 8.0) -> PreTrainedModel:
    """A model of this kind whose largest logit is about `longest`."""
    _, config, sizes = KINDS[kind]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config(**sizes)).eval()
        head = model.get_output_embeddings().weight
        for _ in range(3 if kind != "capped logits and attention" else 0):  # a tied head is in the input, too
            head *= longest / model(torch.arange(VOCAB)[None], use_cache=False).logits.abs().max()
    return model
