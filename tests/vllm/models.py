"""Tiny models whose heads are as wide as vLLM's attention on CPUs needs them, and prompts that fill its cache."""

import torch
from transformers import PreTrainedModel

from opd.data.batch import Prompt
from tests.unit.rollout import families
from tests.unit.rollout.families import VOCAB

BLOCK = 128  # tokens of a block of vLLM's cache on CPUs; only whole blocks are kept for later prompts


def build(family: str, **changes) -> PreTrainedModel:
    # Of these families only Qwen3 says by itself how wide its heads are.
    width = {"head_dim": 32} if family.startswith("qwen3") else {"hidden_size": 128, "initializer_range": 0.15}
    return families.build(family, **{**width, "max_position_embeddings": 512, **changes})


def scaled(model: PreTrainedModel, factor: float) -> None:
    """Another model, in place."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(factor)


def long_prompts(count: int = 6) -> list[Prompt]:
    """They have two blocks of the cache in common, and then differ."""
    draw = torch.Generator().manual_seed(3)
    common = torch.randint(3, VOCAB, (2 * BLOCK,), generator=draw).tolist()
    return [
        Prompt(f"long{index}", "", "", "", (*common, *torch.randint(3, VOCAB, (index + 1,), generator=draw).tolist()))
        for index in range(count)
    ]
