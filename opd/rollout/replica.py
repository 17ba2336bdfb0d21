"""The sampler's own copy of the learner, at another precision: the mismatch between the two is real, not simulated."""

import copy
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from opd.model.int8 import quantize
from opd.model.linear import Linear, output_axis
from opd.model.lora import adapters, merged

Precision = Literal["float32", "bfloat16", "int8"]


def replicate(learner: PreTrainedModel, precision: Precision) -> PreTrainedModel:
    """What samples for `learner`: itself where it can, else a copy that `refresh` must fill.

    float32: the learner's own modules, no copy, unless its weights are sharded, adapted or of lower precision.
    bfloat16: every weight and product in bfloat16. int8: see `round_int8`; products in float32.
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
        if precision == "int8" and tensor in axes:
            value = round_int8(value.to(tensor.dtype), axes[tensor])
        tensor.copy_(value)


def round_int8(weight: Float[Tensor, "rows columns"], axis: int) -> Float[Tensor, "rows columns"]:
    """The weight as 8-bit integers hold it; see `quantize`."""
    quantized, scale = quantize(weight, axis)
    return quantized * scale
