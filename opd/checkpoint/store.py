"""Checkpoints: a folder in Hugging Face format plus the optimizer's state, written whole or not at all.

    checkpoints/step_000100/   model.safetensors config.json tokenizer…   optimizer.safetensors state.json
    checkpoints/final/         the same without the optimizer, with a model card
    with adapters              step_000100 has adapter_model.safetensors and adapter_config.json, as peft writes them,
                               in the model's place; final the merged model, and the adapters in final/adapter
    of several ranks           model-00001-of-00002.safetensors…, an index, optimizer-00001-of-00002.safetensors…

Everything is safetensors and JSON: nothing in a checkpoint can run code when it is read, which torch's distributed
checkpoints, whose metadata is a pickle, could. Tensors are whole, as every reader of the format wants them, and each
rank copies its share of them into its host's memory and writes it; of what is read, a rank reads its shards. So any
number of ranks goes on from any. Nothing random is kept: what is drawn at a step depends on the run's seed and the step
alone. What a resume reads has the names of the model's own parameters, where a published checkpoint may have others
(mixtures of experts are published an expert at a time): `final` has those.
"""

import json
import os
import re
import shutil
import sys
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
from transformers.core_model_loading import revert_weight_conversion

from opd.checkpoint.sealed import damage, write_sealed
from opd.errors import UserError
from opd.model import lora
from opd.model.optim import Optimizer
from opd.model.sharded import read_part, whole_on
from opd.ranks.dist import Ranks
from opd.records.run_dir import read_json

Writer = Callable[[Path, Ranks], None]


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


def resumable(learned: Learned, state: Mapping[str, Any], ranks: Ranks) -> Writer:
    """Copies what a resume needs into the hosts' memory; returns what writes it to a folder, by ranks that talk apart.

    All ranks must call both.
    """
    moments = _shared_out(_flat(learned.optimizer).items(), ranks)
    if learned.adapted:
        write = _adapter_writer(learned, ranks)
    else:
        write = _model_writer(learned.model, _shared_out(_untied(learned.model), ranks), ranks, published=False)

    def fill(folder: Path) -> None:
        write(folder)
        if moments:
            save_file(moments, folder / _of_rank("optimizer.safetensors", ranks))
        if ranks.main:
            learned.tokenizer.save_pretrained(folder)
            (folder / "state.json").write_text(json.dumps(dict(state), indent=1))

    return lambda folder, ranks: _write(folder, ranks, fill)


def final(learned: Learned, texts: Mapping[str, str], ranks: Ranks) -> Writer:
    """As `resumable`, of the model alone, whole, with `texts`: name of a file → its content."""
    saved = {name.replace(".base_layer.", ".") for name in learned.model.state_dict()}
    merged = ((name, tensor) for name, tensor in lora.merged(learned.model) if name in saved)
    weights = _shared_out(merged if learned.adapted else _untied(learned.model), ranks)
    write = _model_writer(learned.model, weights, ranks, published=True)
    write_adapter = _adapter_writer(learned, ranks) if learned.adapted else None

    def fill(folder: Path) -> None:
        write(folder)
        if write_adapter is not None:
            (folder / "adapter").mkdir()
            write_adapter(folder / "adapter")
        if ranks.main:
            learned.tokenizer.save_pretrained(folder)
            for name, text in texts.items():
                (folder / name).write_text(text)

    return lambda folder, ranks: _write(folder, ranks, fill)


def _model_writer(
    model: PreTrainedModel, weights: dict[str, Tensor], ranks: Ranks, *, published: bool
) -> Callable[[Path], None]:
    """Writes this rank's `weights`, by the names of the model's parameters or as its family is `published`."""

    def write(folder: Path) -> None:
        file = folder / _of_rank("model.safetensors", ranks)
        if ranks.main:
            model.save_pretrained(
                folder, state_dict=weights, save_original_format=published, max_shard_size=sys.maxsize
            )
            (folder / "model.safetensors").rename(file)
        elif weights:
            save_file(revert_weight_conversion(model, weights) if published else weights, file, {"format": "pt"})

    return write


def _adapter_writer(learned: Learned, ranks: Ranks) -> Callable[[Path], None]:
    weights = _shared_out(lora.tensors(learned.model).items(), ranks, over=1)
    described = lora.adapter_config(learned.model, learned.base)

    def write(folder: Path) -> None:
        if ranks.main:
            save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            (folder / "adapter_config.json").write_text(described)

    return write


def _of_rank(name: str, ranks: Ranks) -> str:
    """The name of this rank's part of a file of several."""
    stem, suffix = name.split(".")
    return name if ranks.size == 1 else f"{stem}-{ranks.rank + 1:05d}-of-{ranks.size:05d}.{suffix}"


def _write(folder: Path, ranks: Ranks, fill: Callable[[Path], None]) -> None:
    def filled(part: Path) -> None:
        try:
            fill(part)
        except (OSError, SafetensorError) as error:
            raise _as_os_error(error, folder) from error

    write_sealed(folder, ranks, filled, _add_index)


def _add_index(folder: Path) -> None:
    """The file in which readers look for each of a model's tensors where it is in several files."""
    found, size = dict[str, str](), 0
    for path in sorted(folder.glob("model-*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path.name)
        size += path.stat().st_size
    if found:
        index = {"metadata": {"total_size": size}, "weight_map": found}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True))


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
        _restore(learned.optimizer, sorted(folder.glob("optimizer*.safetensors")))
        return read_json(folder / "state.json")
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{folder}: the checkpoint cannot be read ({reason}); delete this folder to go on from the one before it"
        ) from error


@torch.no_grad()
def _fill(ours: Mapping[str, Tensor], files: Iterable[Path], optional: set[str]) -> None:
    missing = ours.keys() - optional
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name not in ours:
                    raise ValueError(f"its weights are not this model's ({name})")
                ours[name].copy_(read_part(file, name, ours[name]))
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


def _shared_out(tensors: Iterable[tuple[str, Tensor]], ranks: Ranks, *, over: int | None = None) -> dict[str, Tensor]:
    """Copies of whole tensors, on the CPU, each for one of the ranks, or of the first `over`, of much the same bytes.

    They are gathered one at a time. Those of a layer, which another format may join, stay together.
    """
    found, owners, held = dict[str, Tensor](), dict[str, int](), [0] * (over or ranks.size)
    for name, tensor in tensors:
        layer = re.match(r".*?\.\d+\.", name)
        owner = owners.setdefault(layer[0] if layer else name, held.index(min(held)))
        held[owner] += tensor.numel() * tensor.element_size()
        if (full := whole_on(tensor.detach(), owner)) is not None:
            found[name] = full.to("cpu", copy=True).contiguous()
    return found


def _restore(optimizer: Optimizer, files: Iterable[Path]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    parameters = dict(enumerate(optimizer.parameters))
    for path in files:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                index, _, name = key.partition(".")
                if int(index) not in parameters:
                    raise ValueError("its optimizer state has more parameters than this model")
                shaped = file.get_slice(key).get_shape() != []
                state.setdefault(int(index), {})[name] = (
                    read_part(file, key, parameters[int(index)]) if shaped else file.get_tensor(key)
                )
    groups = optimizer.adamw.state_dict()["param_groups"]
    optimizer.adamw.load_state_dict({"state": state, "param_groups": groups})


def _as_os_error(error: Exception, folder: Path) -> Exception:
    # safetensors reports a full disk as an error of its own, with the system's number in its text.
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])), str(folder))
    return error
