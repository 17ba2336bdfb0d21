"""Models for passes over fake tensors, which have sizes and no values: of few layers, without weights, the attention as
it will run.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from opd.model.load import attention
from opd.model.shapes import as_config
from opd.model.sharded import layers
from opd.model.whole import build

# Operations after which a pass is given up: those of a minute or so.
MOST = 300_000


@lru_cache(maxsize=16)
def shortened(key: str) -> tuple[PreTrainedConfig, list[int]]:
    """The config cut to its first layers, and which of those each of its layers is like.

    As few as have one of each kind; all where a config cannot be cut, as the layers that it then describes show.
    """
    kinds = _kinds(as_config(key))
    few = max(2, *(kinds.index(kind) + 1 for kind in kinds)) if kinds else 0
    last = {kind: index for index, kind in enumerate(kinds[:few])}
    alike = [index if index < few else last[kind] for index, kind in enumerate(kinds)]
    config = as_config(key)
    if few < len(kinds) and config.get_text_config() is config:
        with suppress(Exception):  # configs check themselves in many ways
            for name, value in vars(config).items():
                if isinstance(value, list) and len(value) == len(kinds):
                    setattr(config, name, value[:few])
            config.num_hidden_layers = few
            if _kinds(config) == kinds[:few]:
                return config, alike
    return as_config(key), list(range(len(kinds)))


def _kinds(config: PreTrainedConfig) -> list[str]:
    """What each layer is: its modules with their settings and the sizes of their weights."""
    with torch.device("meta"):
        blocks = layers(build(config, attn_implementation=attention(config)))
    return [
        repr(
            [
                (
                    name,
                    type(module).__name__,
                    [(each, tuple(weight.shape)) for each, weight in module.named_parameters(recurse=False)],
                    sorted(
                        (each, value)
                        for each, value in vars(module).items()
                        if isinstance(value, bool | int | float | str) and each not in ("layer_idx", "layer_id")
                    ),
                )
                for name, module in block.named_modules()
            ]
        )
        for block in blocks
    ]


def weightless(config: PreTrainedConfig, dtype: torch.dtype, how: str) -> Any:
    """The model that `config` describes, with the attention `how` where the family lets it be chosen."""
    try:
        return build(config, dtype=dtype, attn_implementation=how).eval()
    except ValueError:  # a family that has one attention of its own
        return build(config, dtype=dtype, attn_implementation=attention(config)).eval()


@contextmanager
def fake() -> Iterator[None]:
    """In this context all new tensors are fake.

    Raises:
        RuntimeError: after too many operations.
    """
    with FakeTensorMode(), _Operations(), torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def watching(seen: dict[int | None, list[tuple[int, int, int]]]) -> Iterator[list[int | None]]:
    """Lists query heads, key heads and head dimension of each attention, by the layer that the list given says."""
    plain, now = ALL_ATTENTION_FUNCTIONS["opd_blockwise"], list[int | None]([None])

    def attend(module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **settings: Any) -> Any:
        seen.setdefault(now[0], []).append((query.shape[1], key.shape[1], query.shape[-1]))
        return plain(module, query, key, *rest, **settings)

    ALL_ATTENTION_FUNCTIONS.register("opd_blockwise", attend)
    try:
        yield now
    finally:
        ALL_ATTENTION_FUNCTIONS.register("opd_blockwise", plain)


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


class _Operations(TorchFunctionMode):
    """Refuses a pass of too many operations, and makes grouped matrix products of fake tensors, which torch supports in
    bfloat16 only.
    """

    def __init__(self):
        super().__init__()
        self.left = MOST

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left <= 0:
            raise RuntimeError("it computes token by token")
        if func.__name__ == "_grouped_mm":  # the product of one expert has the same size and saves as much
            return args[0] @ args[1][0]
        return func(*args, **(kwargs or {}))
