"""Small random multimodal models whose text part is a causal model, made from their families' own configs."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

VOCABULARY = 64
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,  # more than the text has
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0, "mrope_interleaved": True},
}
QWEN_VISION = {"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
DEEP = {"deepstack_visual_indexes": [0]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# model type -> (text config, vision config, top level)
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        {**TEXT, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
        VISION,
        {"mm_tokens_per_image": 4},
    ),
    "qwen3_5": ({**TEXT, **LINEAR}, {**QWEN_VISION}, {"tie_word_embeddings": False}),
    "qwen3_5_moe": ({**TEXT, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16}, {**QWEN_VISION}, {}),
    "mistral3": ({**TEXT, "model_type": "ministral3"}, {**VISION, "model_type": "pixtral"}, {}),
    "llama4": (
        {**TEXT, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 64},
        {**VISION, "projector_input_dim": 16, "projector_output_dim": 16, "vision_output_dim": 16},
        {},
    ),
    "gemma4": (
        {
            **TEXT,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 8,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 0,
        },
        {**VISION, "head_dim": 8, "num_key_value_heads": 2, "position_embedding_size": 64},
        {"audio_config": None},
    ),
    "qwen2_5_vl": ({**TEXT, "rope_parameters": MROPE}, {**QWEN_VISION, "fullatt_block_indexes": [1]}, {}),
    "qwen3_vl": ({**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}}, {**QWEN_VISION, **DEEP}, {}),
    "glm4v": ({**TEXT, "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}, {**QWEN_VISION}, {}),
    "llava": ({**TEXT, "model_type": "llama"}, {**VISION, "model_type": "clip_vision_model"}, {}),
    "internvl": ({**TEXT, "model_type": "qwen3"}, {**VISION, "image_size": [28, 28], "patch_size": [14, 14]}, {}),
    "gemma4_unified": (
        {
            **TEXT,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 8,
            "global_head_dim": 16,
            "num_kv_shared_layers": 0,
        },
        {},
        {},
    ),
}


def random_model(family: str, *, seed: int = 0, **text: Any) -> PreTrainedModel:
    """Such a model; `text` are further settings of its text part."""
    of_text, vision, more = FAMILIES[family]
    config = AutoConfig.for_model(family, text_config={**of_text, **text}, vision_config=vision, **more)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model
