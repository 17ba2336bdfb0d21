"""Build the model and tokenizer that a recipe starts from, and save them in Hugging Face format."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from opd.config.recipe import Architecture, Recipe
from opd.config.worlds import world_of
from opd.recipes.tokenizer import EOS, PAD, build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def build(recipe: Recipe) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the initial model of a recipe, in float32 on the CPU, and its tokenizer; the seed decides random weights.

    Raises:
        UserError: where `start` cannot be loaded.
    """
    if recipe.architecture is not None:
        tokenizer = build_tokenizer(world_of(recipe.mix or {}))
        return fresh(recipe.architecture, tokenizer, seed=recipe.seed), tokenizer
    from opd.model.load import load_model, load_tokenizer

    assert recipe.start is not None
    tokenizer = load_tokenizer(recipe.start, revision=None, key="start")
    return load_model(recipe.start, revision=None, dtype="float32", key="start"), tokenizer


def fresh(architecture: Architecture, tokenizer: "PreTrainedTokenizerBase", *, seed: int) -> "PreTrainedModel":
    """Return a Qwen3 model with random weights; the global random state does not change."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    pad_id, eos_id = (int(tokenizer.get_vocab()[token]) for token in (PAD, EOS))
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        num_key_value_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        intermediate_size=architecture.intermediate_size,
        max_position_embeddings=architecture.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        tie_word_embeddings=architecture.tie_embeddings,
        initializer_range=architecture.init_std,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def save(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Save weights (safetensors), config, generation config and tokenizer, as `from_pretrained` reads them."""
    if model.generation_config is not None:
        model.generation_config.eos_token_id = model.generation_config.eos_token_id or tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
