"""Checkpoints: a folder in Hugging Face format plus the optimizer's state, written whole or not at all.

    checkpoints/step_000100/   model.safetensors config.json tokenizer…   optimizer.safetensors state.json
    checkpoints/final/         the same without the optimizer

Everything is safetensors and JSON: nothing in a checkpoint can run code when it is read.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opd.engine.dist import Ranks
from opd.engine.optim import Optimizer
from opd.engine.sharded import part_like, whole
from opd.errors import UserError
from opd.records import read_json


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: Optimizer | None,
    state: Mapping[str, Any],
    ranks: Ranks,
) -> None:
    """Writes a checkpoint beside `folder`, flushes it to disk and renames it: `folder` is whole or absent.

    All ranks must call it; the main one gathers and writes. What it holds does not depend on their number.
    """
    tied = set(model.all_tied_weights_keys or {})
    ours = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    weights = _gathered(ours, ranks) if ranks.grouped else None
    moments = None if optimizer is None else _gathered(_flat(optimizer), ranks)
    ranks.lead(lambda: _write(folder, model, tokenizer, weights, moments, state))


def _write(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, torch.Tensor] | None,
    moments: dict[str, torch.Tensor] | None,
    state: Mapping[str, Any],
) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        model.save_pretrained(part, state_dict=weights)
        tokenizer.save_pretrained(part)
        if moments is not None:
            save_file(moments, part / "optimizer.safetensors")
        (part / "state.json").write_text(json.dumps(dict(state), indent=1))
        for file in part.iterdir():
            _flush(file)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(part, folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise _as_os_error(error, folder) from error


def saved_steps(checkpoints: Path) -> list[int]:
    """Steps with a whole checkpoint, in order."""
    matches = (re.fullmatch(r"step_(\d{6,})", folder.name) for folder in checkpoints.glob("step_*"))
    return sorted(int(match[1]) for match in matches if match)


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return checkpoints / f"step_{step:06d}"


def load(folder: Path, model: PreTrainedModel, optimizer: Optimizer) -> dict[str, Any]:
    """Fills model and optimizer in place from a checkpoint; returns its state.

    Raises:
        UserError: where the checkpoint is damaged or belongs to another model, naming the folder.
    """
    try:
        weights = load_file(folder / "model.safetensors")
        tensors = load_file(folder / "optimizer.safetensors")
        state = read_json(folder / "state.json")
        ours, tied = model.state_dict(), set(model.all_tied_weights_keys or {})
        unexpected, missing = sorted(weights.keys() - ours.keys()), sorted(ours.keys() - weights.keys() - tied)
        if unexpected or missing:
            raise ValueError(f"its weights are not this model's ({(unexpected + missing)[0]})")
        with torch.no_grad():
            for name, value in weights.items():
                ours[name].copy_(part_like(value, ours[name]))
        _restore(optimizer, tensors)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{folder}: the checkpoint cannot be read ({reason}); delete this folder to go on from the one before it"
        ) from error
    return state


def prune(checkpoints: Path, *, keep: int, best: int | None) -> None:
    """Deletes all but the newest `keep` checkpoints and that of step `best`."""
    for step in saved_steps(checkpoints)[:-keep]:
        if step != best:
            with suppress(FileNotFoundError):
                shutil.rmtree(step_folder(checkpoints, step))


def _flat(optimizer: Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.adamw.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def _gathered(tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> dict[str, torch.Tensor]:
    """Whole tensors, on the CPU, for the main rank; one at a time, so that no other rank holds more than one."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if ranks.main:
            found[name] = full.cpu().contiguous()
    return found


def _restore(optimizer: Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
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


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
