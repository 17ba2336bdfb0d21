"""Sizes of a model without its weights: its parameters, and those of published models."""

import json
import math
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, PreTrainedConfig

from opd.model.linear import Linear, output_axis
from opd.model.load import attention
from opd.model.sharded import layers
from opd.model.whole import build

PUBLISHED = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Shape:
    """A causal model's parameters (tied tensors once) and sizes.

    `layers`: parameters of each decoder layer; `head`: of the output head; `linear`: name, and inputs plus outputs, of
    each linear map of the layers; `inner`: outputs of the widest; `matrices`: parameters of all linear maps;
    `channels`: their outputs; `eager`: attention stores its weights, for transformers chooses its own.
    """

    tensors: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]
    head: int
    vocabulary: int
    width: int
    inner: int
    linear: tuple[tuple[str, int], ...]
    matrices: int
    channels: int
    eager: bool

    @property
    def numbers(self) -> int:
        return sum(math.prod(size) for size in self.tensors)

    @property
    def rest(self) -> int:
        """Parameters outside the decoder layers: embedding, head, last norm."""
        return self.numbers - sum(self.layers)

    def share(self, ranks: int) -> int:
        """Parameters of the first of `ranks` ranks: FSDP splits the first axis of every tensor evenly."""
        return sum(-(-size[0] // ranks) * math.prod(size[1:]) for size in self.tensors)


def published(model: str) -> PreTrainedConfig | None:
    """The config of a published model that `published.yaml` has; None for any other."""
    entry = _published()["models"].get(model.removesuffix("-Base"))
    if entry is None:
        return None
    settings = dict(entry["config"])
    ends = list(published_ends(model).values())
    return AutoConfig.for_model(settings.pop("model_type"), **settings, eos_token_id=ends[0], bos_token_id=None)


def published_ends(model: str) -> dict[str, int]:
    """The end-of-text tokens of such a model, and their ids."""
    return _published()["ends"]["base" if model.endswith("-Base") else "chat"]


def shape(config: PreTrainedConfig) -> Shape:
    """The shape of the causal model that `config` describes; allocates no weights."""
    return _shape(as_key(config))


@cache
def _published() -> dict[str, Any]:
    return yaml.safe_load(PUBLISHED.read_text())


def as_key(config: PreTrainedConfig) -> str:
    """The config as a text, by which what is computed of it can be kept."""
    return json.dumps({**config.to_dict(), "model_type": config.model_type}, sort_keys=True, default=str)


def as_config(key: str) -> PreTrainedConfig:
    """The config of which this is the key."""
    settings = json.loads(key)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


@lru_cache(maxsize=16)
def _shape(key: str) -> Shape:
    config = as_config(key)
    with torch.device("meta"):
        model: Any = build(config, attn_implementation=attention(config))
    text, head = model.config.get_text_config(), model.get_output_embeddings()
    blocks = layers(model)
    linear = [m for block in blocks for m in block.modules() if isinstance(m, Linear)]
    return Shape(
        tensors=tuple(tuple(weight.shape) for weight in model.parameters()),
        layers=tuple(sum(weight.numel() for weight in block.parameters()) for block in blocks),
        head=head.weight.numel(),
        vocabulary=head.weight.shape[0],
        width=head.weight.shape[1],
        inner=max((m.weight.shape[output_axis(m)] for m in linear), default=0),
        linear=tuple(
            (name.rpartition(".")[2], sum(module.weight.shape))
            for block in blocks
            for name, module in block.named_modules()
            if isinstance(module, Linear)
        ),
        matrices=sum(m.weight.numel() for m in linear),
        channels=sum(m.weight.shape[output_axis(m)] for m in linear),
        eager=text._attn_implementation == "eager",
    )
