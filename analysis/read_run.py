"""Reads one run directory, and names what in it is damaged."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.columns import RUN_COLUMNS, Column
from analysis.evaluation import Evaluation, read_evaluation, with_texts
from analysis.training import NO_TRAINING, Training, read_training
from opd.config.identity import config_hash
from opd.printable import printable
from opd.records.files import RecordError, read_json
from opd.records.run_dir import RunDir

EXAMPLES = 6  # answers of a run that are shown
_INTEGERS = range(-(2**53), 2**53)  # exact in every tool that reads the exports


@dataclass(frozen=True)
class RunContents:
    """A run as it was read.

    Attributes:
        row: `RUN_COLUMNS` and `arm`, its name and config hash; empty where the run cannot be identified.
        training: its curves.
        evaluations: the intact ones, by step.
        damaged: step → what is wrong with its evaluation, by step.
        damage: what else was left out and why.
        sets: benchmark → the hash of its problems, where the run records that.
    """

    row: dict[str, Any] = field(default_factory=dict)
    training: Training = NO_TRAINING
    evaluations: list[Evaluation] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)
    damage: list[tuple[str, str]] = field(default_factory=list)
    sets: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_intact(self) -> bool:
        return not self.damaged and not self.damage


def read_run(run: RunDir) -> RunContents:
    """Reads the run. No record, however damaged, makes it raise."""
    try:
        config = run.config()
        row, digest = _identify(run, config)
        damage = _check_manifest(run, digest, row)
    except Exception as error:
        return RunContents(damage=[("the run", _reason(error, run))])
    due = _due(config, row)
    training, lost = _training(run, row, first=0 if 0 in due or not row["num_steps"] else 1)
    evaluations, damaged = _evaluations(run, due, training.length)
    evaluations, unread = _with_texts(run, evaluations)
    return RunContents(row, training, evaluations, damaged, damage + lost + unread + _foreign(run), _sets(run))


def _identify(run: RunDir, config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The row, and the config's hash."""
    status = read_json(run.status_file)
    row = {}
    for column in RUN_COLUMNS:
        source = config if column.source == "config.yaml" else status
        if column.name not in source:
            raise RecordError(f"{column.source}: has no {column.name}")
        row[column.name] = source[column.name]
        if not _fits(row[column.name], column):
            value = printable(repr(row[column.name]), limit=40)
            raise RecordError(f"{column.source}: {column.name} is {value}, not of type {column.type.__name__}")
    run.status()  # checks the state
    for name in ("step", "num_steps"):
        if row[name] < 0:
            raise RecordError(f"status.json: {name} is {row[name]}, less than 0")
    first_line = (row["error"] or "").strip().partition("\n")[0]
    row |= {"name": printable(row["name"], limit=80), "study": printable(row["study"], limit=80)}
    row["error"] = printable(first_line, limit=300) or None
    digest = config_hash(config)
    if not run.config_file.read_bytes().endswith(b"\n"):  # what is left may be a valid config, but not the run's
        raise RecordError("config.yaml: its last line is cut off")
    return {"arm": f"{row['name']}-{digest[:8]}", **row}, digest


def _fits(value: Any, column: Column) -> bool:
    if value is None:
        return column.optional
    return type(value) is column.type and (column.type is not int or value in _INTEGERS)


def _is_due(file: Path, row: Mapping[str, Any]) -> bool:
    """Whether the file exists, or must: a run that has not begun has none."""
    return bool(row["step"]) or row["state"] == "finished" or file.is_symlink() or file.exists()


def _check_manifest(run: RunDir, digest: str, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with the manifest, which records the hash of the config that the run was started with.

    Raises:
        RecordError: where that is not `digest`, the hash of the config that is there.
    """
    if not _is_due(run.manifest_file, row):
        return []
    try:
        expected = run.manifest().get("config_hash")
    except Exception as error:
        return [("its manifest", _reason(error, run))]
    if not isinstance(expected, str):
        return [("its manifest", "has no config_hash")]
    if expected != digest:
        raise RecordError("config.yaml: is not the config that the run was started with, according to manifest.json")
    return []


def _sets(run: RunDir) -> dict[str, str]:
    """Benchmark → the hash of its problems, answers and grader, as the manifest has them; earlier ones have none."""
    try:
        recorded = run.manifest().get("contents")
    except RecordError:
        return {}
    found = re.compile(r"evaluate\.sources\.([\w.+-]+)")
    every = recorded.items() if isinstance(recorded, dict) else ()
    return {match[1]: str(value) for key, value in every if (match := found.fullmatch(key))}


def _training(run: RunDir, row: Mapping[str, Any], *, first: int) -> tuple[Training, list[tuple[str, str]]]:
    """The curves, and what of them is missing. A run records every step from `first` on: 0 where it was evaluated."""
    try:
        due = _is_due(run.metrics_file, row)
        training = read_training(run) if due else NO_TRAINING
    except Exception as error:
        return NO_TRAINING, [("its training curves", _reason(error, run))]
    damage = [("the last line of its training curves", "is cut off")] if training.torn else []
    recorded = int(np.count_nonzero((training.step >= first) & (training.step <= row["step"])))
    steps = row["step"] + 1 - first
    if due and recorded < steps:
        damage.append(("a part of its training curves", f"{steps - recorded} of {steps} steps are missing"))
    return training, damage


def _due(config: Mapping[str, Any], row: Mapping[str, Any]) -> set[int]:
    """The steps that the run has evaluated according to its config; its last only once it has finished."""
    settings = config.get("evaluate")
    if not isinstance(settings, Mapping) or not settings.get("benchmarks"):
        return set()
    every = settings.get("every")
    due = set(range(every, row["step"] + 1, every)) if type(every) is int and every > 0 else set()
    due |= {0} if settings.get("at_start") is True and row["step"] else set()
    return due | {row["num_steps"]} if row["state"] == "finished" else due - {row["num_steps"]}


def _evaluations(run: RunDir, due: set[int], recorded: Mapping[int, float]) -> tuple[list[Evaluation], dict[int, str]]:
    """The intact ones, and what is wrong with the others; `recorded`: step → mean length of its answers."""
    readable: list[Evaluation] = []
    damaged: dict[int, str] = {}
    present = run.evaluations()
    for step in sorted({*present, *due}):
        try:
            if step not in _INTEGERS:
                raise RecordError("is not a valid step")
            readable.append(read_evaluation(run, step, examples=EXAMPLES))
        except Exception as error:
            damaged[step] = _reason(error, run) if step in present else "is missing"
    problems = [set(zip(evaluation.benchmark, evaluation.problem, strict=True)) for evaluation in readable]
    total = len(set().union(*problems))
    for evaluation, own in zip(readable, problems, strict=True):
        length = evaluation.mean("length")
        expected = recorded.get(evaluation.step, length)
        if missing := total - len(own):
            damaged[evaluation.step] = f"lacks {missing} of the {total} problems of the run's other evaluations"
        elif not math.isclose(expected, length, rel_tol=1e-6):
            damaged[evaluation.step] = (
                f"its answers have {length:.6g} tokens on average, but {expected:.6g} according to metrics.jsonl"
            )
    return [one for one in readable if one.step not in damaged], dict(sorted(damaged.items()))


def _with_texts(run: RunDir, evaluations: list[Evaluation]) -> tuple[list[Evaluation], list[tuple[str, str]]]:
    """The evaluations, the last with the texts of its examples, and why they cannot be read."""
    try:
        return [*evaluations[:-1], *(with_texts(run, last) for last in evaluations[-1:])], []
    except Exception as error:
        return evaluations, [("the texts of its last evaluation", _reason(error, run))]


def _foreign(run: RunDir) -> list[tuple[str, str]]:
    """Files among the evaluations with names that no run writes; hidden ones are unfinished writes."""
    folder = run.path / "evaluate"
    if not folder.is_dir():
        return [("its evaluations", "evaluate is not a folder")] if folder.is_symlink() or folder.exists() else []
    own = {file.name for file in (*map(run.samples_file, run.evaluations()), *map(run.texts_file, run.texts()))}
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith(".") and file.name not in own)
    return [(f"evaluate/{printable(name, limit=80)}", "is not the name of an evaluation") for name in names]


def _reason(error: Exception, run: RunDir) -> str:
    text = str(error).replace(f"{run.path}/", "").replace(str(run.path), ".")
    if not isinstance(error, RecordError):
        text = f"{type(error).__name__}: {text}"
    return printable(text.strip().partition("\n")[0], limit=300)
