"""A model sharded over the ranks by FSDP2, with the output head gathered while log-probs are computed."""

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from opd.config.schema import Compute
from opd.errors import UserError
from opd.model.forward import MicroBatch, response_hidden
from opd.model.head import output_head
from opd.objective.head import Head
from opd.ranks.dist import Ranks


class Root(nn.Module):
    """A causal model whose forward goes from a micro-batch to what `make` computes of hidden states and output head.

    Under FSDP the head is gathered only during this forward; outside, each rank has a shard.
    """

    def __init__(self, model: PreTrainedModel, ranks: Ranks):
        super().__init__()
        self.model, self.ranks, self.device = model, ranks, ranks.device

    def forward(self, micro: MicroBatch, make: Callable[[Tensor, Head], Any]) -> Any:
        return make(response_hidden(self.model, micro, self.device), output_head(self.model))


def shard(model: PreTrainedModel, ranks: Ranks, compute: Compute, *, learns: bool) -> Root:
    """The model, sharded over the ranks where they are a group: each layer, then the rest.

    Weights keep their precision; products are computed in `compute.dtype`, gradients summed in float32.

    Raises:
        UserError: for a setting that has no effect here or is not supported.
    """
    _refuse_ineffective(model, ranks, compute)
    if compute.compile:
        _check_compiler()
        for layer in layers(model):
            layer.compile()
    if learns and compute.activation_checkpointing:
        for layer in layers(model):
            recompute(layer)
    root = Root(model if compute.offload else model.to(ranks.device), ranks)  # pyright: ignore[reportArgumentType]
    if ranks.grouped:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

        settings: dict[str, Any] = {"mesh": init_device_mesh(ranks.device.type, (ranks.size,))}
        if learns and compute.dtype != "float32":
            settings["mp_policy"] = MixedPrecisionPolicy(getattr(torch, compute.dtype), torch.float32)
        if compute.offload:
            settings["offload_policy"] = CPUOffloadPolicy()
        for layer in layers(model):
            fully_shard(layer, **settings)
        # Resharded after each forward: in between, the sampler reads the weights as shards.
        fully_shard(root, reshard_after_forward=True, **settings)
    return root


def recompute(layer: nn.Module) -> None:
    """Makes the layer compute its activations anew in the backward pass instead of keeping them.

    transformers' own way needs training mode, which would switch dropout on: the model stays in evaluation mode.
    """
    plain = layer.forward

    @functools.wraps(plain)
    def forward(*given: Any, **more: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*given, **more)
        return checkpoint(plain, *given, use_reentrant=False, preserve_rng_state=False, **more)

    layer.forward = forward


def uncompiled() -> AbstractContextManager[Any]:
    """Within this context, layers run uncompiled, which is faster with a growing cache of keys and values."""
    # Where nothing has loaded the compiler, nothing is compiled, and `set_stance` would load it.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _refuse_ineffective(model: PreTrainedModel, ranks: Ranks, compute: Compute) -> None:
    if compute.offload and ranks.device.type == "cpu":
        raise UserError(
            "compute.offload=true: the ranks compute on the CPU, where the weights are already; set "
            "compute.offload=false"
        )
    for knob in ("activation_checkpointing", "compile"):
        if getattr(compute, knob) and not layers(model):
            raise UserError(
                f"compute.{knob}=true: {type(model).__name__} has no list of layers, to each of which it would apply; "
                f"set compute.{knob}=false"
            )


@functools.cache
def _check_compiler() -> None:
    try:
        torch.compile(lambda x: 2 * x)(torch.zeros(2))
    except Exception as error:  # there are many errors for a missing compiler; all mean the same to the user
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
        raise UserError(
            f"compute.compile=true: torch cannot compile on this machine ({reason}); set compute.compile=false"
        ) from error


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers: the modules of the model's longest `ModuleList`."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of one that may be sharded; all ranks must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_on(tensor: Tensor, rank: int) -> Tensor | None:
    """Like `full_tensor`, for one rank; None on the others."""
    if not isinstance(tensor, DTensor):
        return tensor if not dist.is_initialized() or dist.get_rank() == rank else None
    rows, ranks, part = tensor.shape[0], tensor.device_mesh.size(), tensor.to_local()
    if ranks == 1:
        return part
    most = -(-rows // ranks)  # the last shards may have fewer
    sent = nn.functional.pad(part, [0, 0] * (part.ndim - 1) + [0, most - len(part)]).contiguous()
    if dist.get_rank() != rank:
        dist.gather(sent, dst=rank)
        return None
    full = sent.new_empty(ranks * most, *part.shape[1:])
    dist.gather(sent, list(full.split(most)), dst=rank)
    return full[:rows]
