"""A model over the ranks: FSDP2, with the output head whole while its log-probs are made."""

import functools
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel

from opd.config.schema import Compute
from opd.errors import UserError
from opd.model.forward import MicroBatch, response_hidden
from opd.ranks.dist import Ranks


class Root(nn.Module):
    """A causal model as one forward from a micro-batch to whatever `make` makes of hidden states and output head.

    Under FSDP the head is whole inside this forward alone; outside it is a shard.
    """

    def __init__(self, model: PreTrainedModel, ranks: Ranks):
        super().__init__()
        self.model, self.ranks, self.device = model, ranks, ranks.device

    @contextmanager
    def remaking_activations(self) -> Iterator[None]:
        """While it holds, layers that keep no activations for the backward pass make them anew there."""
        # transformers does so in training mode alone; elsewhere the model stays in evaluation mode.
        self.model.train(getattr(self.model, "is_gradient_checkpointing", False))
        try:
            yield
        finally:
            self.model.eval()

    def forward(self, micro: MicroBatch, make: Callable[[Tensor, Tensor], Any]) -> Any:
        return make(response_hidden(self.model, micro, self.device), self.model.get_output_embeddings().weight)  # pyright: ignore


def spread_over(model: PreTrainedModel, ranks: Ranks, compute: Compute, *, learns: bool) -> Root:
    """The model, its layers and then the rest sharded over the ranks where they are a group.

    Weights keep their precision; products are made in `compute.dtype`, gradients summed in float32.

    Raises:
        UserError: for a knob that does nothing here, or cannot.
    """
    _refuse_idle(model, ranks, compute)
    if compute.compile:
        _can_compile()
        for layer in layers(model):
            layer.compile()
    if learns and compute.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
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
        # Resharded after each forward: between two of them the weights are read, by the sampler, as they are.
        fully_shard(root, reshard_after_forward=True, **settings)
    return root


def uncompiled() -> AbstractContextManager[Any]:
    """While it holds, layers run as they are written, which serves a growing cache of keys and values better."""
    # Without a compiler in this process nothing is compiled, and asking would load it.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _refuse_idle(model: PreTrainedModel, ranks: Ranks, compute: Compute) -> None:
    if compute.offload and ranks.device.type == "cpu":
        raise UserError(
            "compute.offload=true: the ranks compute on the CPU, where the weights are; set compute.offload=false"
        )
    if compute.activation_checkpointing and not model.supports_gradient_checkpointing:
        raise UserError(
            f"compute.activation_checkpointing=true: {type(model).__name__} cannot make activations anew; set "
            "compute.activation_checkpointing=false"
        )
    if compute.compile and not layers(model):
        raise UserError(
            f"compute.compile=true: {type(model).__name__} has no list of layers to compile; set compute.compile=false"
        )


@functools.cache
def _can_compile() -> None:
    try:
        torch.compile(lambda x: 2 * x)(torch.zeros(2))
    except Exception as error:  # a compiler may be missing in many ways; each means the same to the user
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
        raise UserError(
            f"compute.compile=true: torch cannot compile on this machine ({reason}); set compute.compile=false"
        ) from error


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers: the modules of the longest list in the model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on(tensor: Tensor, rank: int) -> Tensor | None:
    """All of a tensor that may be sharded, for one rank, None for the others; all ranks must ask."""
    if not isinstance(tensor, DTensor):
        return tensor if not dist.is_initialized() or dist.get_rank() == rank else None
    rows, ranks, part = tensor.shape[0], tensor.device_mesh.size(), tensor.to_local()
    if ranks == 1:
        return part
    most = -(-rows // ranks)  # the last parts have fewer
    sent = nn.functional.pad(part, [0, 0] * (part.ndim - 1) + [0, most - len(part)]).contiguous()
    if dist.get_rank() != rank:
        dist.gather(sent, dst=rank)
        return None
    full = sent.new_empty(ranks * most, *part.shape[1:])
    dist.gather(sent, list(full.split(most)), dst=rank)
    return full[:rows]


def read_part(file: Any, name: str, like: Tensor) -> Tensor:
    """A tensor of an open safetensors file as `like` is, on its device; where that is sharded, this rank's part alone.

    Raises:
        ValueError: where it has another shape.
    """
    stored = file.get_slice(name)
    if stored.get_shape() != list(like.shape):
        raise ValueError(f"{name} has the shape {stored.get_shape()} instead of {list(like.shape)}")
    if not isinstance(like, DTensor):
        return file.get_tensor(name).to(like.device)
    size, start = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    nothing = torch.empty(size, dtype=like.dtype)
    part = stored[tuple(map(slice, start, map(operator.add, start, size)))] if nothing.numel() else nothing
    return DTensor.from_local(
        part.to(like.device), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
