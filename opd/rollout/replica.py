"""The sampler's own copy of the learner, at another precision: the mismatch between the two is real, not simulated."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from opd.model.int8 import quantize
from opd.model.linear import Linear, output_axis
from opd.model.lora import adapters, merged
from opd.model.rope import same_frequencies

Precision = Literal["float32", "bfloat16", "int8", "float8", "int4"]

Weight = Float[Tensor, "rows columns"]


def replicate(learner: PreTrainedModel, precision: Precision) -> PreTrainedModel:
    """What samples for `learner`: itself where it can, else a copy that `refresh` must fill.

    float32: the learner's own modules, no copy, unless its weights are sharded, adapted or of lower precision.
    bfloat16: every weight and product in bfloat16. Another: the weights of linear maps rounded, see `ROUNDING`;
    products in float32.
    """
    weights = list(learner.parameters())
    unsharded = all(
        not isinstance(weight, DTensor) and weight.dtype in (torch.float32, torch.float64) for weight in weights
    )
    if precision == "float32" and unsharded and not adapters(learner):
        return learner
    # Built from the config, not by deepcopy: buffers outside the state dict (rotary frequencies) are then those of the
    # architecture at full precision, and a sharded learner cannot be deep-copied at all.
    with torch.random.fork_rng(devices=[]):
        replica: Any = AutoModelForCausalLM.from_config(
            copy.deepcopy(learner.config),
            dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32,
            attn_implementation=learner.config._attn_implementation,
        )
    same_frequencies(replica, learner)
    return replica.to(learner.device).requires_grad_(False).eval()


@torch.no_grad()
def refresh(replica: PreTrainedModel, learner: PreTrainedModel, precision: Precision) -> None:
    """Fill the copy with the learner's weights, adapters merged in. Of a sharded learner every rank must call this."""
    axes = {module.weight: output_axis(module) for module in replica.modules() if isinstance(module, Linear)}
    ours = dict(replica.named_parameters()) | dict(replica.named_buffers())
    for name, value in merged(learner):
        if name not in ours:
            continue
        tensor = ours[name]
        if precision in ROUNDING and tensor in axes:
            value = ROUNDING[precision](value.to(tensor.dtype), axes[tensor])
        tensor.copy_(value)


def round_integer(weight: Weight, axis: int, *, largest: int) -> Weight:
    """The weight as integers from `-largest` to `largest` hold it; see `quantize`."""
    quantized, scale = quantize(weight, axis, largest=largest)
    return quantized * scale


def round_float8(weight: Weight, axis: int) -> Weight:
    """The weight as 8-bit floats (E4M3: 3 bits of mantissa, at most 448) hold it, with a scale for each output channel
    that makes its largest weight 448 (Micikevicius et al. 2022, arXiv:2209.05433).
    """
    scale = weight.abs().amax(dim=1 - axis, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale


# Precisions that round the weights of linear maps, by what rounds them: (weight, output axis) → weight.
ROUNDING: Mapping[str, Callable[[Weight, int], Weight]] = {
    "int8": partial(round_integer, largest=127),
    "float8": round_float8,
    "int4": partial(round_integer, largest=7),
}
