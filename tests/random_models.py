"""Models of random weights, of the tiny world's vocabulary, in a folder each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
    "tie_embeddings": True,
    "init_std": 0.3,
}


def save_random(folder: Path, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes `models`, by name what each has other than `SHAPE`; the seed of each is its place."""
    from opd.config.recipe import Architecture
    from opd.recipes.build import fresh, save
    from opd.recipes.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    for seed, (name, own) in enumerate(models.items()):
        save(fresh(Architecture(**{**SHAPE, **own}), tokenizer, seed=seed), tokenizer, folder / name)
