"""Weights in 8 bits: symmetric integers with a scale for each output channel, products in a higher precision."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from transformers import PreTrainedModel

from opd.model.linear import Linear, output_axis
from opd.model.sharded import layers


def quantize(
    weight: Float[Tensor, "rows columns"], output_axis: int, *, largest: int = 127
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, "#rows #columns"]]:
    """w → (q, s) with w ≈ s q: q = round(w / s), s = max |w| / `largest` of its output channel, 1 if all w are 0.

    The vector-wise absmax quantisation of LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339, section 2.1), applied to
    weights only. |w - s q| ≤ s / 2.
    """
    scale = weight.abs().amax(dim=1 - output_axis, keepdim=True) / largest
    scale = torch.where(scale > 0, scale, 1.0)
    return torch.round(weight / scale).to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear map with its weight in 8 bits, dequantised for each product to the input's precision.

    Weight and scale are buffers: they are not trained, and FSDP does not shard them.
    """

    quantized: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: Linear):
        super().__init__()
        weight = linear.weight.detach().movedim(output_axis(linear), 0)
        quantized, scale = quantize(weight.float(), output_axis=0)
        self.register_buffer("quantized", quantized.contiguous())
        self.register_buffer("scale", scale.to(weight.dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.quantized.to(inputs.dtype) * self.scale.to(inputs.dtype)
        return nn.functional.linear(inputs, weight, self.bias)


def quantize_layers(model: PreTrainedModel) -> None:
    """Quantises the linear maps of the model's layers; embedding, norms and output head keep their precision."""
    for layer in layers(model):
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Linear):
                    setattr(parent, name, Int8Linear(child))
