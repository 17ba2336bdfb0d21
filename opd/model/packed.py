"""Packing: rows of unequal length without their padding.

Everything that a layer does token by token, nearly all of its work, is done on one row of the real tokens. Only
attention puts its queries, keys and values back into rows, padded on the right, where no token attends to the padding.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from opd.model.head import head_inputs

NAME = "opd_packed"  # as an attention implementation of transformers


def enable(model: PreTrainedModel) -> None:
    """Enables packed rows if the model's attention allows them; other calls work as before.

    That is so where tokens attend to all earlier ones of their row, positions come from `position_ids`, and a trial on
    two rows gives the result of padded rows.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config._attn_implementation != "sdpa" or kinds != {"full_attention"} or _has_sliding_window(config):
        return
    if config.get_text_config() is not config or not model._can_set_attn_implementation():
        return
    model.set_attn_implementation(NAME)
    if not _is_exact(model):
        model.set_attn_implementation("sdpa")


def enabled(model: PreTrainedModel) -> bool:
    """Whether `hidden` works with this model."""
    return model.config._attn_implementation == NAME


def hidden(
    model: PreTrainedModel, inputs: Int[Tensor, "rows length"], there: Bool[Tensor, "rows length"], device: torch.device
) -> Float[Tensor, "tokens width"]:
    """What the output head reads of the tokens that are `there` in rows padded on the right, row by row."""
    position = torch.arange(inputs.shape[1]).expand_as(inputs)
    places = there.flatten().nonzero()[:, 0].to(device)
    states = head_inputs(
        model,
        inputs[there][None].to(device),
        attention_mask=_as_mask(places, inputs.shape),
        position_ids=position[there][None].to(device),
    )
    return states[0]


def _as_mask(places: Int[Tensor, " tokens"], shape: torch.Size) -> Int[Tensor, "rows length 1 tokens"]:
    # Models pass any mask with four axes to attention unchanged. The shape of this one is that of the rows; its content
    # is each token's place in them, expanded without a copy.
    return places.expand(*shape, 1, -1)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    if attention_mask is None or attention_mask.dtype != torch.long:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows, length = attention_mask.shape[:2]
    places = attention_mask[0, 0, 0]

    def unpacked(packed: Tensor) -> Tensor:
        tokens = packed[0].transpose(0, 1)
        padded = tokens.new_zeros(rows * length, *tokens.shape[1:]).index_copy(0, places, tokens)
        return padded.view(rows, length, *tokens.shape[1:]).transpose(1, 2)

    output, _ = sdpa_attention_forward(module, unpacked(query), unpacked(key), unpacked(value), None, **options)
    return output.flatten(0, 1).index_select(0, places)[None], None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def _has_sliding_window(config: Any) -> bool:
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


@torch.inference_mode()
def _is_exact(model: PreTrainedModel) -> bool:
    ids = (torch.arange(10) % model.config.vocab_size).view(2, 5)
    there = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    try:
        packed = hidden(model, ids, there, model.device)
    except (TypeError, ValueError, RuntimeError):  # the model does not accept such positions or such a mask
        return False
    padded = head_inputs(model, ids.to(model.device))[there.to(model.device)]
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    return torch.allclose(packed.float(), padded.float(), rtol=tolerance, atol=tolerance)
