"""Checks before any weights are loaded: student and teachers read and end texts alike, and the memory suffices."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from opd.check.engines import engine
from opd.check.signal import uses_anchor
from opd.config.schema import RunConfig
from opd.data.template import missing_opening
from opd.errors import UserError
from opd.model.load import load_config, load_tokenizer, max_positions, same_vocabulary
from opd.model.memory import Machine, MemoryEstimate, Models, estimate_memory
from opd.model.remedies import remedies
from opd.model.shapes import shape
from opd.model.texts import Reading, Texts, end_alike, read
from opd.model.widths import Vocabulary, narrowed, width
from opd.printable import warn
from opd.ranks.dist import Ranks
from opd.recipes.make import locate
from opd.step.methods import bind, bound_ensemble

# Models this small always fit, and estimating their memory takes longer than their first step.
SMALL = 2**24


def check(config: RunConfig, ranks: Ranks, loaded: Sequence[Reading] | None = None) -> tuple[Texts, Models]:
    """Refuses a run whose teachers read or end texts differently from its student, or that does not fit this machine.
    Returns its texts, and its models' configs.

    `loaded`: the result of `load_readings`, if there is one already; a large vocabulary takes seconds to read.

    Raises:
        UserError: with the knob to turn.
    """
    student, *teachers = loaded or load_readings(config)
    models, vocabulary = model_configs(config)
    said = compare_tokenizers(config, student, *teachers) + check_vocabulary(config, vocabulary, student)
    for warning in said if ranks.main else ():
        warn(warning)
    if max(shape(model).numbers for model in (models.student, *models.teachers)) > SMALL:
        machine = this_machine(ranks)
        check_memory(config, models, estimate_memory(config, models, machine, config.prompts.max_prompt_length))
    return Texts(student.tokenizer, vocabulary.size, frozenset(reading.key for reading in teachers)), models


def check_vocabulary(config: RunConfig, vocabulary: Vocabulary, student: Reading) -> list[str]:
    """Warnings about what leaves the vocabulary, and where the top K are all of it.

    Raises:
        UserError: where it lacks tokens of the student's texts.
    """
    vocabulary.check(student.tokenizer, student.ends)
    return [
        *vocabulary.said(),
        *uncut(config, vocabulary.size),
        *beyond_vocabulary(config, vocabulary.size),
    ]


def beyond_vocabulary(config: RunConfig, size: int) -> list[str]:
    """A warning where the top K are all tokens."""
    k = config.support.get("k")
    if not isinstance(k, int) or k <= size:
        return []
    return [f"support.k={k}: the vocabulary has {size} tokens, so these are all of them, as with support=full"]


def uncut(config: RunConfig, size: int) -> list[str]:
    """Warnings about teachers on servers whose heads have another width, as far as their configs can be read here."""
    said = []
    for index, model in enumerate(config.teacher.models if engine(config).loads == "elsewhere" else []):
        key, (path, revision) = f"teacher.models.{index}", locate(model, config)
        try:
            rows = width(load_config(path, revision=revision, key=key))
        except UserError:
            continue
        if rows > size:
            said.append(
                f"{key}: scores by its server are taken as they are, over {rows} ids; the vocabulary has {size}"
            )
        if rows < size:
            said.append(
                f"{key}: its server knows {rows} ids, and the student may write any of {size}; "
                f"student.vocab_size={rows} leaves out the others"
            )
    return said


def compare_tokenizers(config: RunConfig, student: Reading, *teachers: Reading) -> list[str]:
    """Warnings about the student's chat template, and about teachers whose texts differ from the student's.

    Raises:
        UserError: where they cannot teach it.
    """
    warnings, alignment = unopened_turn(config, student.tokenizer), bind("alignment", config.alignment)()
    for teacher in teachers:
        if alignment.same_vocabulary:
            same_vocabulary(student.tokenizer, teacher.tokenizer, key=f"{teacher.key}={teacher.model!r}")
        warnings += end_alike(student, teacher, explicit=config.student.stop_tokens is not None)
    return warnings


def unopened_turn(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A warning where prompts end before the model's turn begins."""
    if config.prompts.template != "chat" or (missing := missing_opening(tokenizer)) is None:
        return []
    return [
        f"prompts.template=chat: the tokenizer's chat template ignores add_generation_prompt and leaves {missing!r}, "
        "which it writes before a model's turn, out of prompts, so the student may go on with the user's turn; add it "
        "to the template, or set prompts.template=raw"
    ]


def load_readings(config: RunConfig) -> list[Reading]:
    """How the student, the teachers and the anchor read and end texts."""
    named = {"student.model": "self"} | {f"teacher.models.{i}": model for i, model in enumerate(config.teacher.models)}
    if uses_anchor(config):
        named["shaping.anchor"] = config.shaping.anchor
    loaded, tokenizers = [], {}
    for key, model in named.items():
        if key == "student.model" or model != "self":
            path, revision = place = locate(model, config)
            stops = config.student.stop_tokens if key == "student.model" else None
            name = config.student.model if key == "student.model" else model
            try:
                if place not in tokenizers:
                    tokenizers[place] = load_tokenizer(path, revision=revision, key=key)
                loaded.append(read(tokenizers[place], path, revision=revision, key=key, model=name, stop_tokens=stops))
            except UserError:
                # What a server calls a model need not be a name that can be loaded here.
                if not key.startswith("teacher.") or engine(config).loads != "elsewhere":
                    raise
    return loaded


def model_configs(config: RunConfig, load: Any = load_config) -> tuple[Models, Vocabulary]:
    """The configs of the run's models, without weights, cut to the vocabulary that they have in common; `load` is what
    loads one.

    Raises:
        UserError: for one that cannot be loaded, or a student.vocab_size that is more than all models have.
    """
    bound, own = bound_ensemble(config), [] if engine(config).loads == "elsewhere" else config.teacher.models
    named = {"student.model": "self"} | {f"teacher.models.{index}": model for index, model in enumerate(own)}
    if uses_anchor(config):
        named["shaping.anchor"] = config.shaping.anchor
    loaded: dict[str, PreTrainedConfig] = {}
    for key, model in named.items():
        path, revision = locate(model, config)
        loaded[key] = load(path, revision=revision, key=key)
    vocabulary = Vocabulary({key: width(each) for key, each in loaded.items()}, config.student.vocab_size)
    cut = {key: narrowed(each, vocabulary.size) for key, each in loaded.items()}
    models = Models(
        student=cut["student.model"],
        teachers=[cut[f"teacher.models.{index}"] for index in range(len(own))],
        anchor=cut.get("shaping.anchor"),
        together=sorted({bound.needed(step / 200) for step in range(201)}) if own else [()],
    )
    return models, vocabulary


def check_positions(config: RunConfig, models: Models, longest: int) -> None:
    """Refuses teachers and anchors that have fewer positions than the longest prompt with its response has tokens.

    Raises:
        UserError: with the length of responses that would fit.
    """
    named = {f"teacher.models.{index}": each for index, each in enumerate(models.teachers)}
    if models.anchor is not None:
        named["shaping.anchor"] = models.anchor
    for key, model in named.items():
        positions = max_positions(model)
        if positions is not None and longest > positions:
            room = positions - longest + config.max_response_length
            remedy = f"set max_response_length={room}, or choose another" if room > 0 else "choose another"
            raise UserError(
                f"{key}: has {positions} positions, and the longest prompt with its response has {longest} tokens; "
                f"{remedy}"
            )


def check_memory(config: RunConfig, models: Models, estimate: MemoryEstimate) -> None:
    """Refuses a plan that does not fit its machine.

    Raises:
        UserError: with settings under which it would, where there are any.
    """
    if estimate.fits:
        return
    machine = estimate.machine
    remedy = remedies(config, models, machine, config.prompts.max_prompt_length)
    advice = f"set {' '.join(remedy)}, or start more ranks" if remedy else "start more ranks, or choose smaller models"
    raise UserError(
        f"memory: {estimate.worst} takes {estimate.total(estimate.worst) / 2**30:.1f} GiB of each of {machine.ranks} "
        f"ranks, which has {machine.usable / 2**30:.1f}; {advice} (preflight=true shows what takes it)"
    )


def this_machine(ranks: Ranks) -> Machine:
    """What a rank of this run has: its GPU, or its share of the memory that is free here."""
    kind: Literal["cuda", "cpu"] = "cuda" if ranks.device.type == "cuda" else "cpu"
    if kind == "cuda":
        return Machine(kind, ranks.size, torch.cuda.get_device_properties(ranks.device).total_memory)
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or ranks.size)
    return Machine(kind, ranks.size, free_memory() // max(1, min(here, ranks.size)))


def free_memory() -> int:
    """Free bytes of this machine, or of this process's control group."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or one without a limit
        pass
    return free
