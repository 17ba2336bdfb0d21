"""Run directories → tidy frames. What cannot be used is listed by name with the reason, and counts nowhere.

The columns are declared below, with where they come from and their type. Paths are relative to the folder that was
loaded: the frames are a pure function of the records in it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.details import Details, read_details
from analysis.evaluation import SCORES, Evaluation, Example, read_evaluation
from analysis.text import printable
from opd.records import RecordError, RunDir, config_hash, find_runs, read_json


@dataclass(frozen=True)
class Column:
    """One column of a frame: the record and key that it comes from and the type of its values."""

    name: str
    source: str
    type: type
    optional: bool = False


RUN_COLUMNS = (
    Column("name", "config.yaml", str),
    Column("study", "config.yaml", str),
    Column("seed", "config.yaml", int),
    Column("state", "status.json", str),
    Column("step", "status.json", int),
    Column("num_steps", "status.json", int),
    Column("error", "status.json", str, optional=True),
)
TRAINING_COLUMNS = tuple(
    Column(name, "metrics.jsonl", float, optional=True)
    for name in (
        "divergence/reverse_kl",
        "entropy/student",
        "grad_norm",
        "loss",
        "filter/kept",
        "rollout_correction/masked",
        "rollout_correction/log_ppl_drift",
        "response/length",
        "response/truncated",
        "response/tokens",
        "time/step",
    )
)
ANSWERS_SHOWN = 6  # a run
_EXAMPLE = [field.name for field in fields(Example)]


@dataclass(frozen=True)
class Records:
    """What a folder of runs holds.

    Attributes:
        runs: one row a run, in order of name, config hash and seed. `run` (its path), `arm` (name and config hash: what
            its seeds share), `RUN_COLUMNS`, `counted` (it is finished and its last step was evaluated), `last_known`
            and `max_known` (no damaged evaluation hides its last or its best score).
        training: one row a step. `run`, `step` and `TRAINING_COLUMNS`, NaN where nothing was recorded.
        scores: one row a problem of an evaluation. `run`, `step`, `benchmark`, `problem`, `k` and `SCORES`.
        answers: a few answers of each run's last evaluation.
        excluded: one row a thing left out. `run`, `left_out`, `reason`.
        details: arm → what it was set to and what its rollouts look like.
    """

    runs: pd.DataFrame
    training: pd.DataFrame
    scores: pd.DataFrame
    answers: pd.DataFrame
    excluded: pd.DataFrame
    details: Mapping[str, Details] = field(default_factory=dict)


def load(root: Path) -> Records:
    """Reads every run directory under `root`. No record, however broken, makes it raise."""
    read: list[_Run] = []
    for run in find_runs(root):
        path = printable(run.path.relative_to(root).as_posix(), limit=300)
        alike = sum(path == other.path.partition(" #")[0] for other in read)
        read.append(_read(run, f"{path} #{alike + 1}" if alike else path))
    kept = sorted(_without_duplicates(read), key=lambda run: [run.row[key] for key in ("name", "arm", "seed", "run")])
    return Records(
        runs=_frame(
            ("run", "arm", *_names(RUN_COLUMNS), "counted", "last_known", "max_known"),
            [tuple(run.row.values()) for run in kept],
        ),
        training=_frame(
            ("run", "step", *_names(TRAINING_COLUMNS)), [(run.path, *line) for run in kept for line in run.training]
        ),
        scores=_scores(kept),
        answers=_frame(
            ("run", "step", *_EXAMPLE),
            [
                (run.path, evaluation.step, *(getattr(example, name) for name in _EXAMPLE))
                for run in kept
                for evaluation in run.evaluations[-1:]
                for example in evaluation.examples
            ],
        ),
        excluded=_frame(
            ("run", "left_out", "reason"), sorted((run.path, *what) for run in read for what in run.excluded)
        ),
        details=read_details((run.row["arm"], run.folder) for run in kept),
    )


# ---- one run


@dataclass
class _Run:
    path: str
    folder: RunDir
    row: dict[str, Any] = field(default_factory=dict)
    training: list[tuple] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    excluded: list[tuple[str, str]] = field(default_factory=list)


def _read(run: RunDir, path: str) -> _Run:
    found = _Run(path, run)
    try:
        row = _describe(run)
    except Exception as error:
        found.excluded.append(("the run", _reason(error, run)))
        return found
    try:
        found.training = _training(run)
        if run.metrics_file.exists() and not run.metrics_file.read_bytes().endswith(b"\n"):
            found.excluded.append(("the last line of its training curves", "is torn"))
    except Exception as error:
        found.excluded.append(("its training curves", _reason(error, run)))
    found.evaluations, damaged = _evaluations(run)
    found.excluded += [(f"its evaluation at step {step}", reason) for step, reason in damaged.items()]
    last = found.evaluations[-1].step if found.evaluations else -1
    last_known = last > max(damaged, default=-1)
    not_counted = _not_counted(row, last, last_known)
    found.excluded += [not_counted] if not_counted else []
    found.excluded += [("its best score over training", "an evaluation of it is damaged")] if damaged else []
    known = {"counted": not not_counted, "last_known": last_known, "max_known": last >= 0 and not damaged}
    found.row = {"run": found.path, **row, **known}
    return found


def _describe(run: RunDir) -> dict[str, Any]:
    config, status = run.config(), read_json(run.status_file)
    row = {}
    for column in RUN_COLUMNS:
        source = config if column.source == "config.yaml" else status
        if column.name not in source:
            raise RecordError(f"{column.source}: has no {column.name}")
        value = source[column.name]
        if type(value) is not column.type and not (column.optional and value is None):
            shown = printable(repr(value), limit=40)
            raise RecordError(f"{column.source}: {column.name} is {shown}, not of type {column.type.__name__}")
        row[column.name] = value
    run.status()  # knows the states that there are
    first_line = (row["error"] or "").strip().partition("\n")[0]
    row |= {"name": printable(row["name"], limit=80), "study": printable(row["study"], limit=80)}
    row["error"] = printable(first_line, limit=300) or None
    return {"arm": f"{row['name']}-{config_hash(config)[:8]}", **row}


def _training(run: RunDir) -> list[tuple]:
    rows = {}
    for line in run.metrics():
        step = line.get("step")
        if type(step) is not int:
            raise RecordError(f"metrics.jsonl: {printable(repr(step), limit=40)} is no step")
        rows[step] = (step, *(_number(line.get(column.name)) for column in TRAINING_COLUMNS))
    return [rows[step] for step in sorted(rows)]


def _number(value: Any) -> float:
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else math.nan


def _evaluations(run: RunDir) -> tuple[list[Evaluation], dict[int, str]]:
    """The whole evaluations in order of steps, and step → reason of the damaged ones."""
    whole: list[Evaluation] = []
    damaged: dict[int, str] = {}
    for step in run.evaluations():
        try:
            whole.append(read_evaluation(run, step, examples=ANSWERS_SHOWN))
        except Exception as error:
            damaged[step] = _reason(error, run)
    asked = [set(zip(evaluation.benchmark, evaluation.problem, strict=True)) for evaluation in whole]
    total = len(set().union(*asked))
    for evaluation, problems in zip(whole, asked, strict=True):
        if missing := total - len(problems):
            damaged[evaluation.step] = f"lacks {missing} of the {total} problems of the run's other evaluations"
    return [evaluation for evaluation in whole if evaluation.step not in damaged], dict(sorted(damaged.items()))


def _not_counted(row: dict[str, Any], last: int, last_known: bool) -> tuple[str, str] | None:
    """What a run is left out of, and why: unfinished, or its last step not evaluated. None where it counts."""
    where = f"{row['state']} at step {row['step']} of {row['num_steps']}"
    if row["state"] == "finished" and last < row["num_steps"]:
        where = f"finished {row['num_steps']} steps"
    elif row["state"] == "finished":
        return None if last_known else ("means and differences", "its last evaluation is damaged")
    if last < 0:
        return ("its scores", f"{where}, no evaluation to read")
    return ("means and differences", f"{where}, last evaluated at step {last}")


def _reason(error: Exception, run: RunDir) -> str:
    text = str(error).replace(f"{run.path}/", "").replace(str(run.path), ".")
    if not isinstance(error, RecordError):
        text = f"{type(error).__name__}: {text}"
    return printable(text.strip().partition("\n")[0], limit=300)


# ---- all runs


def _without_duplicates(read: Sequence[_Run]) -> list[_Run]:
    """One run for each name, config and seed: a finished one before others, then the one that came furthest, then the
    one in the directory that bears its id.
    """
    kept: dict[tuple[str, int], _Run] = {}
    readable = [run for run in read if run.row]

    def rank(run: _Run) -> tuple:
        at_home = run.path.endswith(f"{run.row['arm']}-s{run.row['seed']}")
        return run.row["state"] != "finished", -run.row["step"], not at_home, run.path

    for run in sorted(readable, key=rank):
        first = kept.setdefault((run.row["arm"], run.row["seed"]), run)
        if first is not run:
            run.excluded = [("the run", f"has the name, config and seed of {first.path}, which is counted")]
    return list(kept.values())


def _scores(kept: Sequence[_Run]) -> pd.DataFrame:
    every = [(run.path, evaluation) for run in kept for evaluation in run.evaluations]
    sizes = [len(evaluation.problem) for _, evaluation in every]
    values = np.concatenate([np.empty((len(SCORES), 0)), *(evaluation.scores for _, evaluation in every)], axis=1)
    return pd.DataFrame(
        {
            "run": np.repeat(np.array([path for path, _ in every], dtype=object), sizes),
            "step": np.repeat(np.array([evaluation.step for _, evaluation in every], dtype=int), sizes),
            "benchmark": [benchmark for _, evaluation in every for benchmark in evaluation.benchmark],
            "problem": [problem for _, evaluation in every for problem in evaluation.problem],
            "k": np.concatenate([np.empty(0, dtype=int), *(evaluation.k for _, evaluation in every)]),
            **dict(zip(SCORES, values, strict=True)),
        }
    )


def _names(columns: Sequence[Column]) -> list[str]:
    return [column.name for column in columns]


def _frame(columns: Sequence[str], rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns))
