"""Low-rank adapters: W + (alpha / rank) B A, where only A and B are trained (Hu et al., arXiv 2106.09685).

They are peft's modules, injected in place: the model keeps its class and the names of its other weights. B is zero at
first, so that the adapted model starts out equal to its base. There is no dropout: with it, the learner's log-probs
would not be those of the policy that sampled.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from opd.config.schema import Lora
from opd.errors import UserError
from opd.model.linear import Linear, output_axis
from opd.model.sharded import full_tensor

# The name that peft gives to a model's only adapter, and the prefix of module names in its files.
ONLY, PREFIX = "default", "base_model.model."


def add_adapters(model: PreTrainedModel, lora: Lora, *, seed: int) -> None:
    """Adds adapters to the linear layers that `lora` names; only they are trained from then on.

    Raises:
        UserError: for a name that is not of a layer, or of a layer that is not linear or is the output head, or a rank
            that is more than any layer has.
    """
    import peft

    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=0.0,
        target_modules=lora.target_modules,
        task_type=peft.TaskType.CAUSAL_LM,
    )
    head = model.get_output_embeddings()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    linear = {name.rpartition(".")[2] for name in layers}
    linear -= {name.rpartition(".")[2] for name, module in model.named_modules() if module is head}
    most = max((min(layer.weight.shape) for layer in layers.values() if layer is not head), default=lora.rank)
    if lora.rank > most:
        raise UserError(f"student.lora.rank={lora.rank}: no layer has a rank of more than {most}; give at most that")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)  # peft sets it for GPT-2's layers
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(config, model)
        except ValueError as error:
            raise UserError(f"student.lora.target_modules: {str(error).splitlines()[0].rstrip('.')}") from error
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        if not isinstance(module.base_layer, Linear) or module.base_layer is head:
            raise UserError(
                f"student.lora.target_modules: {name} is not a linear layer between embedding and output head; choose "
                f"from {', '.join(sorted(linear))}"
            )
        for each in (module.lora_A, module.lora_B):  # peft creates them in float32
            each.to(module.base_layer.weight.dtype)  # pyright: ignore


def adapters(model: nn.Module) -> dict[str, Any]:
    """The adapted layers: name → peft's module."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def merged(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yields the full weights and buffers of the model with its adapters merged, under the base model's names.

    On a sharded model, all ranks must iterate over all of them.
    """
    adapted = adapters(model)
    for name, tensor in base_tensors(model):
        owner, _, kind = name.rpartition(".")
        value = full_tensor(tensor.detach())
        yield name, value + _delta(adapted[owner]).to(value) if owner in adapted and kind == "weight" else value


def base_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yields parameters and buffers except the adapters', under the base model's names."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor


def _delta(module: Any) -> Tensor:
    """(alpha / rank) B A of an adapted layer, in the layout of its weight."""
    down, up = (full_tensor(each[ONLY].weight.detach()) for each in (module.lora_A, module.lora_B))
    delta = up @ down * module.scaling[ONLY]
    return delta.T if output_axis(module.base_layer) else delta


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapters, still sharded, under the names of peft's files."""
    return {
        PREFIX + name.replace(f".{ONLY}.", "."): tensor for name, tensor in model.named_parameters() if ".lora_" in name
    }


def adapter_config(model: PreTrainedModel, base: str, *, published: bool) -> str:
    """The content of `adapter_config.json`, as peft reads it; `base` is the path or hub id of the base model, whose
    directory is named with its place on this machine unless the file is `published`.
    """
    config = next(iter(model.peft_config.values())).to_dict()  # pyright: ignore
    folder = Path(base).resolve()
    name = base if not folder.is_dir() else folder.name if published else str(folder)
    config |= {"base_model_name_or_path": name, "inference_mode": True}
    listed = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return json.dumps(listed, indent=1, sort_keys=True)
