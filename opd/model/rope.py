"""Rotary positions whose frequencies depend on a text's length (LongRoPE, dynamic NTK), fixed for a whole run.

transformers takes the longest text of each batch, so that a text's log-probs would depend on what else is in its batch,
and on how far it has come while it is sampled.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# What is computed no more.
FIXED = "fixed"


def fix_frequencies(model: PreTrainedModel, length: int) -> None:
    """Gives every text, however short, the frequencies that transformers computes for one of `length` tokens."""
    for module, layer_type, kind in _depending(model):
        compute = ROPE_INIT_FUNCTIONS[kind]
        more = {} if layer_type is None else {"layer_type": layer_type}
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        device = getattr(module, name).device
        frequencies, _ = compute(module.config, device, seq_len=length, **more)
        module.register_buffer(name, frequencies, persistent=False)
        if layer_type is None:
            module.rope_type = FIXED
        else:
            module.rope_type[layer_type] = FIXED


def same_frequencies(copy: PreTrainedModel, model: PreTrainedModel) -> None:
    """Fixes the frequencies of a copy that was made from `model`'s config as those of `model` are."""
    theirs: dict[str, Any] = dict(model.named_modules())
    ours: dict[str, Any] = dict(copy.named_modules())
    for name, module in ours.items():
        if FIXED in _kinds(theirs.get(name)).values():
            kinds = theirs[name].rope_type
            module.rope_type = dict(kinds) if isinstance(kinds, dict) else kinds
            for buffer, value in theirs[name].named_buffers(recurse=False):
                module.register_buffer(buffer, value.clone(), persistent=False)


def _depending(model: PreTrainedModel) -> Iterator[tuple[Any, str | None, str]]:
    """Modules with frequencies that depend on the length, the type of layer that they are for, and their kind."""
    for module in model.modules():
        for layer_type, kind in _kinds(module).items():
            rope: Any = getattr(module, "config", None)
            settings = rope.rope_parameters if layer_type is None else rope.rope_parameters[layer_type]
            # HunYuan's `alpha` stretches every text alike.
            if kind == "longrope" or ("dynamic" in kind and not settings.get("alpha")):
                yield module, layer_type, kind


def _kinds(module: nn.Module | None) -> dict[str | None, str]:
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, str):
        return {None: kinds}
    return dict(kinds) if isinstance(kinds, dict) else {}
