"""Checkpoints: a folder in Hugging Face format plus the optimizer's state, written atomically.

    checkpoints/step_000100/   model.safetensors config.json tokenizer…   optimizer.safetensors state.json
    checkpoints/final/         the model alone, with a model card
    with adapters              step_000100 has peft's adapter_model.safetensors and adapter_config.json instead of the
                               model; final has the merged model, and the adapters in final/adapter, whose config has
                               only the name of a base in a directory: no file of final/ names a place on this machine
    a multimodal model         step_000100 has its text model alone; final has the whole model, whose config.json,
                               processor files and other tensors are those of the checkpoint that training began with
    of several ranks           model-00001-of-00002.safetensors…, an index, optimizer-00001-of-00002.safetensors…

Everything is safetensors and JSON, so reading a checkpoint cannot run code. Each rank writes its share of the tensors,
each tensor in full, as other readers of the format expect, and reads its own shards of them: any number of ranks can
resume. No random state is saved: it depends on the run's seed and the step alone. Step checkpoints have the names of
the model's own parameters, `final` those that the family is published with (mixtures of experts: one expert at a time).
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from warnings import catch_warnings

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from opd.checkpoint.atomic import write_folder
from opd.checkpoint.steps import Progress, read_progress
from opd.errors import UserError
from opd.model import lora
from opd.model.optim import Optimizer
from opd.model.sharded import full_on
from opd.model.whole import Whole, whole_of
from opd.model.widths import Further, width
from opd.ranks.dist import Ranks

Writer = Callable[[Path, Ranks], None]


@dataclass(frozen=True)
class Learned:
    """What a checkpoint holds: the model, the path of its `base` before any adapters, its tokenizer and optimizer.

    `further`: what was cut from the model, which `final` alone has again.
    """

    model: PreTrainedModel
    base: str
    tokenizer: PreTrainedTokenizerBase
    optimizer: Optimizer
    further: Further | None = None

    @property
    def adapted(self) -> bool:
        return bool(lora.adapters(self.model))

    @property
    def cut_to(self) -> int | None:
        """How many ids the model has, where it was cut."""
        return None if self.further is None else width(self.model.config)


def resumable(learned: Learned, progress: Progress, ranks: Ranks) -> Writer:
    """Copies what a resume needs to CPU memory; returns a function that writes the copy to a folder, which may run in
    a thread with a process group of its own. All ranks must call both.
    """
    moments = _own_share(_flat(learned.optimizer).items(), ranks)
    if learned.adapted:
        write = _adapter_writer(learned, ranks, published=False)
    else:
        write = _model_writer(learned.model, _own_share(_untied(learned.model), ranks), ranks, published=False)

    def fill(folder: Path) -> None:
        write(folder)
        if moments:
            save_file(moments, folder / _of_rank("optimizer.safetensors", ranks))
        if ranks.main:
            learned.tokenizer.save_pretrained(folder)
            (folder / "state.json").write_text(json.dumps(asdict(progress), indent=1))

    return lambda folder, ranks: _write(folder, ranks, fill)


def final(learned: Learned, texts: Mapping[str, str], ranks: Ranks) -> Writer:
    """Like `resumable`, for the merged model alone, with text files besides: `texts`, name → content."""
    saved = {name.replace(".base_layer.", ".") for name in learned.model.state_dict()}
    merged = ((name, tensor) for name, tensor in lora.merged(learned.model) if name in saved)
    weights = _own_share(merged if learned.adapted else _untied(learned.model), ranks)
    if learned.further is not None:
        weights = learned.further.joined(weights)
    write = _model_writer(learned.model, weights, ranks, published=True)
    write_adapter = _adapter_writer(learned, ranks, published=True) if learned.adapted else None

    def fill(folder: Path) -> None:
        write(folder)
        if write_adapter is not None:
            (folder / "adapter").mkdir()
            write_adapter(folder / "adapter")
        if ranks.main:
            if learned.further is not None and whole_of(learned.model) is None:  # a whole model's config is as it was
                learned.further.save_config(learned.model, folder)
            learned.tokenizer.save_pretrained(folder)
            for name, text in texts.items():
                (folder / name).write_text(text)

    return lambda folder, ranks: _write(folder, ranks, fill)


def _model_writer(
    model: PreTrainedModel, weights: dict[str, Tensor], ranks: Ranks, *, published: bool
) -> Callable[[Path], None]:
    """Writes this rank's `weights`, under the names of the model's parameters or, if `published`, of its family: of a
    multimodal one with all else that its checkpoint had.
    """
    if published and (whole := whole_of(model)) is not None:
        return _whole_writer(model, whole, weights, ranks)

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


def _whole_writer(
    model: PreTrainedModel, whole: Whole, weights: dict[str, Tensor], ranks: Ranks
) -> Callable[[Path], None]:
    parts = ranks.size + 1  # each rank's share of the text model, and the rest

    def write(folder: Path) -> None:
        if weights:
            file = folder / f"model-{ranks.rank + 1:05d}-of-{parts:05d}.safetensors"
            save_file(whole.published(weights), file, {"format": "pt"})
        if ranks.main:
            whole.copy_rest(folder / f"model-{parts:05d}-of-{parts:05d}.safetensors")
            whole.copy_description(folder)
            if model.generation_config is not None:
                model.generation_config.save_pretrained(folder)

    return write


def _adapter_writer(learned: Learned, ranks: Ranks, *, published: bool) -> Callable[[Path], None]:
    weights = _own_share(lora.tensors(learned.model).items(), ranks, over=1)
    described = lora.adapter_config(learned.model, learned.base, published=published)

    def write(folder: Path) -> None:
        if ranks.main:
            save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            (folder / "adapter_config.json").write_text(described)

    return write


def _of_rank(name: str, ranks: Ranks) -> str:
    """The name of this rank's part of a file."""
    stem, suffix = name.split(".")
    return name if ranks.size == 1 else f"{stem}-{ranks.rank + 1:05d}-of-{ranks.size:05d}.{suffix}"


def _write(folder: Path, ranks: Ranks, fill: Callable[[Path], None]) -> None:
    def filled(part: Path) -> None:
        try:
            fill(part)
        except (OSError, SafetensorError) as error:
            raise _as_os_error(error, folder) from error

    write_folder(folder, ranks, filled, _add_index)


def _add_index(folder: Path) -> None:
    """Writes the index of a model's tensors where they are in several files."""
    names, size = dict[str, str](), 0
    for path in sorted(folder.glob("model-*.safetensors")):
        with safe_open(path, "pt") as file:
            names |= dict.fromkeys(file.keys(), path.name)
        size += path.stat().st_size
    if names:
        index = {"metadata": {"total_size": size}, "weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True))


def load(folder: Path, learned: Learned) -> Progress:
    """Fills model and optimizer in place from a checkpoint, each rank its own shards.

    Raises:
        UserError: where the checkpoint cannot be read or belongs to another model, naming the folder.
    """
    weights = lora.tensors(learned.model) if learned.adapted else dict(_untied(learned.model))
    tied = set(learned.model.all_tied_weights_keys or {})
    try:
        reader = HuggingFaceStorageReader(str(folder))
        stored = reader.read_metadata().state_dict_metadata.keys()
        moments = _empty_moments(learned.optimizer, stored - weights.keys() - tied)
        with catch_warnings(action="ignore", category=UserWarning):  # about a process without a group
            load_state_dict({**weights, **moments}, storage_reader=reader, no_dist=True)
        adamw = learned.optimizer.adamw
        state = {int(index): moments[index] for index in moments}
        adamw.load_state_dict({"state": state, "param_groups": adamw.state_dict()["param_groups"]})
        return read_progress(folder)
    except (Exception, CheckpointException) as error:
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        if not isinstance(cause, Exception):  # a Ctrl-C, which torch wraps too, says nothing about the checkpoint
            raise cause from None
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise UserError(
            f"{folder}: the checkpoint cannot be read ({reason}); delete this folder to go on from the one before it"
        ) from error


def _empty_moments(optimizer: Optimizer, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Room for optimizer state stored as `<index>.<name>`, sharded like the parameters; index → name → tensor."""
    parameters = {str(index): parameter for index, parameter in enumerate(optimizer.parameters)}
    moments: dict[str, dict[str, Tensor]] = {}
    for key in sorted(names):  # the ranks gather the moments one by one, so all must have them in one order
        index, _, name = key.partition(".")
        if index not in parameters:
            raise ValueError(f"this model has no {key}")
        room = torch.zeros(()) if name == "step" else torch.zeros_like(parameters[index])
        moments.setdefault(index, {})[name] = room
    return moments


def _untied(model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
    tied = set(model.all_tied_weights_keys or {})
    return [(name, tensor) for name, tensor in model.state_dict().items() if name not in tied]


def _flat(optimizer: Optimizer) -> dict[str, Tensor]:
    state = optimizer.adamw.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def _own_share(tensors: Iterable[tuple[str, Tensor]], ranks: Ranks, *, over: int | None = None) -> dict[str, Tensor]:
    """This rank's share of the full tensors, copied to the CPU: about as many bytes as each rank (of the first `over`).

    Gathers one tensor at a time. The tensors of a layer, which another format may join, go to one rank.
    """
    own, owners, loads = dict[str, Tensor](), dict[str, int](), [0] * (over or ranks.size)
    for name, tensor in tensors:
        layer = re.match(r".*?\.\d+\.", name)
        owner = owners.setdefault(layer[0] if layer else name, loads.index(min(loads)))
        loads[owner] += tensor.numel() * tensor.element_size()
        if (full := full_on(tensor.detach(), owner)) is not None:
            own[name] = full.to("cpu", copy=True).contiguous()
    return own


def _as_os_error(error: Exception, folder: Path) -> Exception:
    # safetensors reports a full disk as an error of its own, with the errno in its message.
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])), str(folder))
    return error
