"""Low-rank adapters: W + (alpha / rank) B A, of which A and B alone are learned (Hu et al., arXiv 2106.09685).

They are peft's modules, put into the model in place: it keeps its class and the names of its other weights. B starts
at zero, so that the adapted model starts as the model that it adapts. There is no dropout, which would make the
log-probs that are learned from others than those of the policy that sampled.
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
from opd.model.sharded import whole

# The name that peft gives to a model's only adapter, and what stands before a module's name in its files.
ONLY, PREFIX = "default", "base_model.model."


def add_adapters(model: PreTrainedModel, lora: Lora, *, seed: int) -> None:
    """Puts adapters beside the linear layers that `lora` names; they alone are learned from then on.

    Raises:
        UserError: where a name is that of no layer, of the output head, or of one that is not linear.
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
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Linear)}
    linear -= {name.rpartition(".")[2] for name, module in model.named_modules() if module is head}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)  # of GPT-2's layers, where peft sets it
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
                f"student.lora.target_modules: {name} is no linear layer between embedding and output head; name some "
                f"of {', '.join(sorted(linear))}"
            )
        for each in (module.lora_A, module.lora_B):  # peft makes them in float32
            each.to(module.base_layer.weight.dtype)  # pyright: ignore


def adapters(model: nn.Module) -> dict[str, Any]:
    """Name of an adapted layer → peft's module."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def merged(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights and buffers of the model that the adapted one computes, whole, by that model's names, one at a time.

    Of a sharded model every rank must ask for all of them.
    """
    found = adapters(model)
    for name, tensor in plain(model):
        owner, _, kind = name.rpartition(".")
        value = whole(tensor.detach())
        yield name, value + _change(found[owner]).to(value) if owner in found and kind == "weight" else value


def plain(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers without the adapters', by the names of the model without them."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor


def _change(module: Any) -> Tensor:
    """(alpha / rank) B A of an adapted layer, as its weight lies."""
    down, up = (whole(each[ONLY].weight.detach()) for each in (module.lora_A, module.lora_B))
    change = up @ down * module.scaling[ONLY]
    return change.T if output_axis(module.base_layer) else change


def merge(model: PreTrainedModel) -> None:
    """Takes the adapters out of an unsharded model, which computes the same."""
    for name, module in adapters(model).items():
        module.base_layer.weight.data += _change(module).to(module.base_layer.weight)
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, module.base_layer)
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers would save adapters alone
        model._hf_peft_config_loaded = False
        del model.peft_config
        del model._weight_conversions  # which are from peft's names


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapters, sharded as they are, by the names of peft's files."""
    return {
        PREFIX + name.replace(f".{ONLY}.", "."): tensor for name, tensor in model.named_parameters() if ".lora_" in name
    }


def adapter_config(model: PreTrainedModel, base: str) -> str:
    """`adapter_config.json`, as peft reads it; `base` is the model that was adapted."""
    config = next(iter(model.peft_config.values())).to_dict()  # pyright: ignore
    path = str(Path(base).resolve()) if Path(base).is_dir() else base
    config |= {"base_model_name_or_path": path, "inference_mode": True}
    listed = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return json.dumps(listed, indent=1, sort_keys=True)
