"""What a pass of a model takes, measured without its weights, by passes over fake tensors: the activations that it
saves for the backward pass, and what it keeps of the tokens that it has read.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from opd.model.fake import fake, shortened, watching, weightless
from opd.model.shapes import as_config, as_key, shape
from opd.model.sharded import layers

# How attention runs: recomputed block by block, in torch's plain kernel, or as transformers writes it.
Attention = Literal["blockwise", "math", "eager"]

# The tokens of a pass of a model with states, which computes them in chunks of at most as many.
CHUNK = 256


@dataclass(frozen=True)
class SavedActivations:
    """Bytes that a forward pass saves for the backward pass: of each layer, of its input, and outside the layers.

    `bounded`: they are at most these, for no pass over fake tensors is possible.
    """

    layers: tuple[int, ...]
    inputs: tuple[int, ...]
    rest: int
    largest: int
    bounded: bool = False

    def total(self, checkpointing: bool) -> int:
        """All of them; with activation checkpointing only the layers' inputs and one recomputed layer."""
        if checkpointing and self.layers:
            return self.rest + sum(self.inputs) + max(self.layers)
        return self.rest + sum(self.layers)


@dataclass(frozen=True)
class Held:
    """What a model keeps of what it has read, in numbers: for each token, and for each sequence (`state`); and its
    attention: most query heads of a layer, whether they share keys, and layers · query heads · head dimension.

    `bounded`: it keeps at most this, for no pass over fake tensors is possible.
    """

    token: int
    state: int
    heads: int
    grouped_query: bool
    attention: int
    bounded: bool = False


def held(config: PreTrainedConfig) -> Held:
    """What the model that `config` describes keeps of what it has read, as its own cache does."""
    return _held(as_key(config))


def saved_activations(
    config: PreTrainedConfig, *, rows: int, length: int, dtype: torch.dtype, kind: Attention
) -> SavedActivations:
    """What a forward pass of [rows, length] tokens in `dtype` saves."""
    return _saved(as_key(config), rows, length, dtype, kind)


@lru_cache(maxsize=16)
def _held(key: str) -> Held:
    try:
        return _measured(key)
    except Exception:  # what an operation without its tensors' values raises depends on the operation
        return _at_most(key)


def _measured(key: str) -> Held:
    config, alike = shortened(key)
    seen: dict[int | None, list[tuple[int, int, int]]] = {}
    with fake(), watching(seen) as now:
        model = weightless(config, torch.float32, "opd_blockwise")
        blocks = layers(model)
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(_enter, now, index))
        short, long = (_kept(_read(model, 1, length, use_cache=True), len(blocks)) for length in (1, 2))
    # Each attention was called twice.
    calls = [each for index in alike for each in seen.get(index, [])[1::2]]
    tokens = [two - one for one, two in zip(short, long, strict=True)]
    states = [max(0, one - token) for one, token in zip(short, tokens, strict=True)]
    asked = getattr(config.get_text_config(), "num_attention_heads", None) or 0
    return Held(
        token=sum(tokens[index] for index in alike),
        state=sum(states[index] for index in alike),
        heads=max((heads for heads, _, _ in calls), default=asked),
        grouped_query=any(heads != shared for heads, shared, _ in calls),
        attention=sum(heads * size for heads, _, size in calls),
    )


def _read(model: Any, rows: int, length: int, *, use_cache: bool) -> Any:
    return model.base_model(input_ids=torch.zeros(rows, length, dtype=torch.long), use_cache=use_cache)


def _enter(now: list[int | None], index: int, *_: Any) -> None:
    now[0] = index


def _at_most(key: str) -> Held:
    """Of each layer keys and values of the width of its widest linear map."""
    model = shape(as_config(key))
    heads = getattr(as_config(key).get_text_config(), "num_attention_heads", None) or 0
    return Held(2 * model.inner * len(model.layers), 0, heads, True, 0, bounded=True)


def _kept(output: Any, count: int) -> list[int]:
    """Numbers that a model's output holds for its next call, of each of `count` layers."""
    cache = next((output[name] for name in ("past_key_values", "cache_params", "state") if name in output), None)
    each = getattr(cache, "layers", ())
    sizes = [_numbers(layer) for layer in each] + [0] * (count - len(each))
    if not _numbers(cache):
        raise ValueError("it returns no cache")
    if len(sizes) != count or not any(sizes):  # a cache with another order: the layers' share, rounded up
        return [-(-_numbers(cache) // count)] * count
    return sizes


def _numbers(holder: Any) -> int:
    found: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            found[id(value)] = value.numel() * value.is_floating_point()
        elif isinstance(value, dict | list | tuple):
            for each in value.values() if isinstance(value, dict) else value:
                walk(each)
        elif type(value).__module__.startswith("transformers."):
            walk(vars(value))

    walk(holder)
    return sum(found.values())


@lru_cache(maxsize=16)
def _saved(key: str, rows: int, length: int, dtype: torch.dtype, kind: Attention) -> SavedActivations:
    try:
        if length <= 3 * CHUNK or not _held(key).state:
            return _pass(key, rows, length, dtype, kind)
        # A state is computed token by token where its kernel is missing: the pass is that of three shorter ones.
        short = [_pass(key, rows, chunks * CHUNK, dtype, kind) for chunks in (1, 2, 3)]
    except Exception:  # as above
        return _saved_at_most(key, rows, length, dtype, kind)
    at = length / CHUNK

    def extended(one: int, two: int, three: int) -> int:
        bend = (three - 2 * two + one) / 2
        return round(one + (two - one) * (at - 1) + bend * (at - 1) * (at - 2))

    sizes = zip(*((*each.layers, *each.inputs, each.rest, each.largest) for each in short), strict=True)
    *each, rest, largest = (extended(*of) for of in sizes)
    count = len(short[0].layers)
    return SavedActivations(tuple(each[:count]), tuple(each[count:]), rest, largest)


def _saved_at_most(key: str, rows: int, length: int, dtype: torch.dtype, kind: Attention) -> SavedActivations:
    """Three times what each linear map reads and writes, and the weights of attention."""
    model, tokens = shape(as_config(key)), rows * length * dtype.itemsize
    square = 0 if kind == "blockwise" else 3 * _held(key).heads * length * tokens
    layer = 3 * tokens * sum(both for _, both in model.linear) // max(1, len(model.layers)) + square
    each, inputs = (layer,) * len(model.layers), (tokens * model.width,) * len(model.layers)
    return SavedActivations(each, inputs, 3 * tokens * model.width, max(square // 3, tokens * model.inner), True)


def _pass(key: str, rows: int, length: int, dtype: torch.dtype, kind: Attention) -> SavedActivations:
    config, alike = shortened(key)
    with fake():
        model = weightless(config, dtype, "eager" if kind == "eager" else f"opd_{kind}")
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

        def enter(index: int, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            now[0] = index
            inputs.append((given[0] if given else named["hidden_states"]).nbytes)

        def leave() -> None:
            now[0] = None

        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(enter, index), with_kwargs=True)
            block.register_forward_hook(lambda *_: leave())
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            _read(model, rows, length, use_cache=False)
    return SavedActivations(
        layers=tuple(bins.get(index, 0) for index in alike),
        inputs=tuple(inputs[index] for index in alike),
        rest=bins[None],
        largest=largest,
    )
