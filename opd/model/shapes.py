"""Sizes of a model without its weights: its parameters, and the activations that it saves for the backward pass."""

import json
import math
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from opd.model.linear import Linear, output_axis
from opd.model.sharded import layers

PUBLISHED = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Shape:
    """A causal model's parameters (tied tensors once) and sizes.

    `layers`: parameters of each decoder layer; `head`: of the output head; `cached`: numbers in a token's keys and
    values; `linear`: name, and inputs plus outputs, of each linear map of the layers; `matrices`: parameters of all
    linear maps; `channels`: their outputs.
    """

    tensors: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]
    head: int
    vocabulary: int
    width: int
    inner: int
    heads: int
    grouped_query: bool
    cached: int
    linear: tuple[tuple[str, int], ...]
    matrices: int
    channels: int

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


@dataclass(frozen=True)
class SavedActivations:
    """Bytes that a forward pass saves for the backward pass: of each layer, of its input, and outside the layers."""

    layers: tuple[int, ...]
    inputs: tuple[int, ...]
    rest: int
    largest: int

    def total(self, checkpointing: bool) -> int:
        """All of them; with activation checkpointing only the layers' inputs and one recomputed layer."""
        if checkpointing and self.layers:
            return self.rest + sum(self.inputs) + max(self.layers)
        return self.rest + sum(self.layers)


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
    return _shape(_key(config))


def saved_activations(
    config: PreTrainedConfig, *, rows: int, length: int, dtype: torch.dtype, math_attention: bool
) -> SavedActivations:
    """What a forward pass of [rows, length] tokens in `dtype` saves, measured by a pass over fake tensors.

    `math_attention`: attention saves its weights, [row, head, length, length]; else it recomputes them block by block.
    """
    return _saved(_key(config), rows, length, dtype, math_attention)


@cache
def _published() -> dict[str, Any]:
    return yaml.safe_load(PUBLISHED.read_text())


def _key(config: PreTrainedConfig) -> str:
    return json.dumps({**config.to_dict(), "model_type": config.model_type}, sort_keys=True, default=str)


def _config(key: str) -> PreTrainedConfig:
    settings = json.loads(key)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


@lru_cache(maxsize=16)
def _shape(key: str) -> Shape:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(_config(key))
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    blocks = layers(model)
    linear = [m for block in blocks for m in block.modules() if isinstance(m, Linear)]
    return Shape(
        tensors=tuple(tuple(weight.shape) for weight in model.parameters()),
        layers=tuple(sum(weight.numel() for weight in block.parameters()) for block in blocks),
        head=model.get_output_embeddings().weight.numel(),
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        inner=max((m.weight.shape[0] for b in blocks for m in b.modules() if isinstance(m, nn.Linear)), default=0),
        heads=heads,
        grouped_query=shared != heads,
        linear=tuple(
            (name.rpartition(".")[2], sum(module.weight.shape))
            for block in blocks
            for name, module in block.named_modules()
            if isinstance(module, Linear)
        ),
        matrices=sum(m.weight.numel() for m in linear),
        channels=sum(m.weight.shape[output_axis(m)] for m in linear),
        cached=2 * shared * size * len(blocks),
    )


@lru_cache(maxsize=16)
def _saved(key: str, rows: int, length: int, dtype: torch.dtype, math_attention: bool) -> SavedActivations:
    attention = "opd_math" if math_attention else "opd_blockwise"
    config, count = _shortened(key)
    with FakeTensorMode(), _GroupedProducts(), torch.random.fork_rng(devices=[]):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        model.eval()
        blocks, inputs, largest = layers(model), list[int](), 0
        bins: dict[int | None, int] = {None: 0}
        # Kept alive, because the address of a freed storage could be reused.
        seen = {weight.untyped_storage()._cdata: weight.untyped_storage() for weight in model.parameters()}
        now: list[int | None] = [None]

        def pack(tensor: Tensor) -> Tensor:
            nonlocal largest
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen[storage._cdata] = storage
                bins[now[0]] = bins.get(now[0], 0) + storage.nbytes()
                largest = max(largest, storage.nbytes())
            return tensor

        def enter(index: int, _: nn.Module, given: tuple[Any, ...]) -> None:
            now[0] = index
            inputs.append(given[0].nbytes)

        def leave() -> None:
            now[0] = None

        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(enter, index))
            block.register_forward_hook(lambda *_: leave())
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.base_model(torch.zeros(rows, length, dtype=torch.long), use_cache=False)
    each = [bins.get(index, 0) for index in range(len(blocks))]
    missing = count - len(blocks)
    layers_, inputs_ = (tuple([*sizes, *sizes[-1:] * missing]) for sizes in (each, inputs))
    return SavedActivations(layers=layers_, inputs=inputs_, rest=bins[None], largest=largest)


def _shortened(key: str) -> tuple[PreTrainedConfig, int]:
    """The config, cut to two layers where all are alike, and the number of its layers."""
    config, count = _config(key), len(_shape(key).layers)
    kinds = getattr(config, "layer_types", None) or []
    if count > 2 and len(set(_shape(key).layers)) == 1 and len(set(kinds)) <= 1:
        config.num_hidden_layers = 2
        if kinds:
            config.layer_types = kinds[:2]
    return config, count


def _attention(backend: SDPBackend | None) -> Any:
    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
        options = {"is_causal": True, "scale": settings.get("scaling"), "enable_gqa": query.shape[1] != key.shape[1]}
        if backend is None:
            out = nn.functional.scaled_dot_product_attention(query, key, value, **options)
        else:
            with sdpa_kernel(backend):
                out = nn.functional.scaled_dot_product_attention(query, key, value, **options)
        return out.transpose(1, 2).contiguous(), None

    return attend


# For attention of these names transformers makes no mask; for sdpa it would make one of fake tensors, unlike in a run.
ALL_ATTENTION_FUNCTIONS.register("opd_blockwise", _attention(None))
ALL_ATTENTION_FUNCTIONS.register("opd_math", _attention(SDPBackend.MATH))


class _GroupedProducts(TorchFunctionMode):
    """Grouped matrix products of fake tensors, which torch supports in bfloat16 only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "_grouped_mm":  # the product of one expert has the same size and saves as much
            return args[0] @ args[1][0]
        return func(*args, **(kwargs or {}))
