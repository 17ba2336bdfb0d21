"""Checkpoints: a folder in Hugging Face format plus the optimizer's state, written whole or not at all.

    checkpoints/step_000100/   model.safetensors config.json tokenizer…   optimizer.safetensors state.json
    checkpoints/final/         the same without the optimizer, with a model card
    with adapters              step_000100 has adapter_model.safetensors and adapter_config.json, as peft writes them,
                               in the model's place; final the merged model, and the adapters in final/adapter

Everything is safetensors and JSON: nothing in a checkpoint can run code when it is read, which torch's distributed
checkpoints, whose metadata is a pickle, could. The main rank gathers tensor by tensor into the host's memory and writes
whole ones: what a checkpoint holds does not depend on the number of ranks. Nothing random is kept: what is drawn at a
step depends on the run's seed and the step alone.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opd.engine import lora
from opd.engine.dist import Ranks
from opd.engine.optim import Optimizer
from opd.engine.sealed import damage, written_whole
from opd.engine.sharded import part_like, whole
from opd.errors import UserError
from opd.records import read_json


@dataclass(frozen=True)
class Learned:
    """What a checkpoint is of: the model, `base`, which it started as, its tokenizer, and what else a resume needs."""

    model: PreTrainedModel
    base: str
    tokenizer: PreTrainedTokenizerBase
    optimizer: Optimizer

    @property
    def adapted(self) -> bool:
        return bool(lora.adapters(self.model))


def resumable(learned: Learned, state: Mapping[str, Any], ranks: Ranks) -> Callable[[Path], None]:
    """Copies what a resume needs into the host's memory; returns what writes it to a folder. All ranks must call it."""
    model = learned.model
    moments = _gathered(_flat(learned.optimizer).items(), ranks)
    if learned.adapted:
        weights = _gathered(lora.tensors(model).items(), ranks)
        write = _adapter_writer(learned, weights)
    else:
        weights = _gathered(_untied(model), ranks)
        write = _model_writer(model, weights)

    def fill(folder: Path) -> None:
        write(folder)
        learned.tokenizer.save_pretrained(folder)
        save_file(moments, folder / "optimizer.safetensors")
        (folder / "state.json").write_text(json.dumps(dict(state), indent=1))

    return lambda folder: _write(folder, fill)


def final(learned: Learned, texts: Mapping[str, str], ranks: Ranks) -> Callable[[Path], None]:
    """As `resumable`, of the model alone, whole, with `texts`: name of a file → its content."""
    write_adapter, saved = None, {name.replace(".base_layer.", ".") for name in learned.model.state_dict()}
    if learned.adapted:
        merged = ((name, tensor) for name, tensor in lora.merged(learned.model) if name in saved)
        write = _model_writer(learned.model, _gathered(merged, ranks))
        write_adapter = _adapter_writer(learned, _gathered(lora.tensors(learned.model).items(), ranks))
    else:
        write = _model_writer(learned.model, _gathered(_untied(learned.model), ranks))

    def fill(folder: Path) -> None:
        write(folder)
        learned.tokenizer.save_pretrained(folder)
        for name, text in texts.items():
            (folder / name).write_text(text)
        if write_adapter is not None:
            (folder / "adapter").mkdir()
            write_adapter(folder / "adapter")

    return lambda folder: _write(folder, fill)


def _model_writer(model: PreTrainedModel, weights: dict[str, Tensor]) -> Callable[[Path], None]:
    return lambda folder: model.save_pretrained(folder, state_dict=weights)


def _adapter_writer(learned: Learned, weights: dict[str, Tensor]) -> Callable[[Path], None]:
    described = lora.adapter_config(learned.model, learned.base)

    def write(folder: Path) -> None:
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(described)

    return write


def _write(folder: Path, fill: Callable[[Path], None]) -> None:
    try:
        with written_whole(folder) as part:
            fill(part)
    except (OSError, SafetensorError) as error:
        raise _as_os_error(error, folder) from error


def saved_steps(checkpoints: Path) -> list[int]:
    """Steps with a checkpoint, in order."""
    matches = (re.fullmatch(r"step_(\d{6,})", folder.name) for folder in checkpoints.glob("step_*"))
    return sorted(int(match[1]) for match in matches if match)


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return checkpoints / f"step_{step:06d}"


def newest_whole(checkpoints: Path, warn: Callable[[str], None]) -> int | None:
    """The last step whose checkpoint is as it was written; `warn` is told of later ones that are not.

    Raises:
        UserError: where there are checkpoints, and all of them are damaged.
    """
    steps = saved_steps(checkpoints)
    for step in reversed(steps):
        folder = step_folder(checkpoints, step)
        if (wrong := damage(folder)) is None:
            return step
        if step == steps[0]:
            raise UserError(
                f"{folder}: the checkpoint is damaged ({wrong}), and there is none before it; delete {checkpoints} to "
                "begin again at step 1"
            )
        warn(f"{folder}: the checkpoint is damaged ({wrong}); going on from the one before it")
    return None


def load(folder: Path, learned: Learned) -> dict[str, Any]:
    """Fills model and optimizer in place from a checkpoint; returns its state.

    Raises:
        UserError: where the checkpoint cannot be read or belongs to another model, naming the folder.
    """
    model = learned.model
    if learned.adapted:
        files, ours, optional = [folder / "adapter_model.safetensors"], lora.tensors(model), set()
    else:
        files, ours = sorted(folder.glob("model*.safetensors")), model.state_dict()
        optional = set(model.all_tied_weights_keys or {})
    try:
        _fill(ours, files, optional)
        with safe_open(folder / "optimizer.safetensors", "pt") as tensors:
            _restore(learned.optimizer, {name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
        return read_json(folder / "state.json")
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{folder}: the checkpoint cannot be read ({reason}); delete this folder to go on from the one before it"
        ) from error


@torch.no_grad()
def _fill(ours: Mapping[str, Tensor], files: Iterable[Path], optional: set[str]) -> None:
    missing = ours.keys() - optional
    for file in files:
        with safe_open(file, "pt") as theirs:
            for name in theirs.keys():  # noqa: SIM118
                if name not in ours:
                    raise ValueError(f"its weights are not this model's ({name})")
                ours[name].copy_(part_like(theirs.get_tensor(name), ours[name]))
                missing = missing - {name}
    if missing:
        raise ValueError(f"its weights are not this model's ({min(missing)})")


def prune(checkpoints: Path, *, keep: int, best: int | None) -> None:
    """Deletes all but the newest `keep` checkpoints and that of step `best`."""
    for step in saved_steps(checkpoints)[:-keep]:
        if step != best:
            with suppress(FileNotFoundError):
                shutil.rmtree(step_folder(checkpoints, step))


def _untied(model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
    tied = set(model.all_tied_weights_keys or {})
    return [(name, tensor) for name, tensor in model.state_dict().items() if name not in tied]


def _flat(optimizer: Optimizer) -> dict[str, Tensor]:
    state = optimizer.adamw.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def _gathered(tensors: Iterable[tuple[str, Tensor]], ranks: Ranks) -> dict[str, Tensor]:
    """Copies of whole tensors, on the CPU, for the main rank; one at a time, so that no other holds more than one."""
    found = {}
    for name, tensor in tensors:
        full = whole(tensor.detach())
        if ranks.main:
            found[name] = full.to("cpu", copy=True).contiguous()
    return found


def _restore(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        shaped = tensor.ndim > 0 and int(index) < len(optimizer.parameters)
        state.setdefault(int(index), {})[name] = (
            part_like(tensor, optimizer.parameters[int(index)]) if shaped else tensor
        )
    groups = optimizer.adamw.state_dict()["param_groups"]
    if state.keys() - set(groups[0]["params"]):
        raise ValueError("its optimizer state has more parameters than this model")
    optimizer.adamw.load_state_dict({"state": state, "param_groups": groups})


def _as_os_error(error: Exception, folder: Path) -> Exception:
    # safetensors reports a full disk as an error of its own, with the system's number in its text.
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])), str(folder))
    return error
