"""Reads run directories into tidy frames. What cannot be used is listed with the reason, and counts nowhere.

Paths are relative to the folder that was loaded, so that the frames are a pure function of the records in it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.arm_details import ArmDetails, read_details
from analysis.cache import Cache
from analysis.columns import RUN_COLUMNS, TRAINING_COLUMNS
from analysis.evaluation import SCORES, Evaluation, Example
from analysis.parallel import parallel_map
from analysis.read_run import RunContents, read_run
from analysis.training import Training
from opd.printable import printable
from opd.records.run_dir import RunDir, find_runs

FEWEST = 40  # runs worth starting processes for
_EXAMPLE = [field.name for field in fields(Example)]


@dataclass(frozen=True)
class Records:
    """The records of a folder of runs.

    Attributes:
        runs: one row a run, sorted by name, config hash and seed. `run` (its path), `arm` (name and config hash, which
            its seeds share), `RUN_COLUMNS`, `counted` (it has finished and its last step was evaluated), `last_known`
            and `max_known` (no damaged evaluation hides its last or its best score).
        training: one row a step. `run`, `step` and `TRAINING_COLUMNS`, NaN where nothing was recorded.
        scores: one row a problem of an evaluation. `run`, `step`, `benchmark`, `problem`, `k` and `SCORES`.
        answers: a few answers of each run's last evaluation.
        excluded: one row a thing left out. `run`, `left_out`, `reason`.
        details: arm → its config and rollouts.
        damage: the rows of `excluded` that are there because a record is damaged, missing, foreign or a duplicate, not
            because its run has not finished.
        averaged: those of `SCORES` that are known only as the mean of an evaluation, which each of its problems has.
    """

    runs: pd.DataFrame
    training: pd.DataFrame
    scores: pd.DataFrame
    answers: pd.DataFrame
    excluded: pd.DataFrame
    details: Mapping[str, ArmDetails] = field(default_factory=dict)
    damage: list[tuple[str, str, str]] = field(default_factory=list)
    averaged: tuple[str, ...] = ()


def load(root: Path, *, cache: Cache | None = None) -> Records:
    """Reads every run directory under `root`. No record, however damaged, makes it raise.

    Runs that are in the `cache` and have not changed since are taken from there.
    """
    unreadable: list[OSError] = []
    folders = find_runs(root, on_error=unreadable.append)
    contents = _contents(folders, cache)
    if cache:
        cache.prune(folders)
    read: list[_Run] = []
    seen = Counter[str]()
    for folder, content in zip(folders, contents, strict=True):
        path = _relative(folder.path, root)
        seen[path] += 1
        read.append(_assess(path if seen[path] == 1 else f"{path} #{seen[path]}", folder, content))
    kept = sorted(_without_duplicates(read), key=lambda run: [run.row[key] for key in ("name", "arm", "seed", "run")])
    _tell_apart(kept)
    details, damaged = read_details((run.row["arm"], run.path, run.folder) for run in kept)
    damage = sorted((run.path, *what) for run in read for what in run.damage) + damaged
    damage += sorted((_relative(Path(error.filename), root), "all in it", str(error.strerror)) for error in unreadable)
    unfinished = [(run.path, *what) for run in read for what in run.unfinished]
    names = ["run", "arm", *(column.name for column in RUN_COLUMNS), "counted", "last_known", "max_known"]
    examples = [
        (run.path, one.step, *run.names([example.benchmark]), *(getattr(example, name) for name in _EXAMPLE[1:]))
        for run in kept
        for one in run.evaluations[-1:]
        for example in one.examples
    ]
    return Records(
        runs=pd.DataFrame([run.row for run in kept], columns=names).astype({"error": "str"}),  # even if all are missing
        training=_training(kept),
        scores=_scores(kept),
        answers=pd.DataFrame(examples, columns=["run", "step", *_EXAMPLE]),
        excluded=pd.DataFrame(sorted([*damage, *unfinished]), columns=["run", "left_out", "reason"]),
        details=details,
        damage=damage,
    )


def _contents(folders: Sequence[RunDir], cache: Cache | None) -> list[RunContents]:
    """The contents of each run, in order."""
    if cache is None:
        return list(parallel_map(read_run, folders, fewest=FEWEST))
    cached = [cache.get(folder) for folder in folders]
    missing = [folder for folder, hit in zip(folders, cached, strict=True) if hit is None]
    read = parallel_map(cache.read, missing, fewest=FEWEST)
    return [next(read) if hit is None else hit for hit in cached]


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix(), limit=300)


# ---- one run


@dataclass
class _Run:
    path: str
    folder: RunDir
    row: dict[str, Any]
    training: Training
    evaluations: list[Evaluation]
    damage: list[tuple[str, str]]
    unfinished: list[tuple[str, str]] = field(default_factory=list)
    sets: Mapping[str, str] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)  # benchmark → the name that tells it from another of its name

    def names(self, benchmarks: Iterable[str]) -> list[str]:
        return [self.named.get(name, name) for name in benchmarks]


def _assess(path: str, folder: RunDir, contents: RunContents) -> _Run:
    """The run with what its numbers may be used for, and what it is left out of."""
    run = _Run(path, folder, {}, contents.training, contents.evaluations, list(contents.damage), sets=contents.sets)
    run.damage += [(f"its evaluation at step {step}", reason) for step, reason in contents.damaged.items()]
    run.damage += [("its best score over training", "one of its evaluations is damaged")] if contents.damaged else []
    if not contents.row:
        return run
    last = contents.evaluations[-1].step if contents.evaluations else -1
    last_known = last > max(contents.damaged, default=-1)
    not_counted = _not_counted(contents.row, last, last_known)
    if not_counted:
        (run.damage if contents.row["state"] == "finished" else run.unfinished).append(not_counted)
    known = {"counted": not not_counted, "last_known": last_known, "max_known": last >= 0 and not contents.damaged}
    run.row = {"run": path, **contents.row, **known}
    return run


def _not_counted(row: dict[str, Any], last: int, last_known: bool) -> tuple[str, str] | None:
    """What a run is left out of because it has not finished or its last step was not evaluated; None if it counts."""
    progress = f"{row['state']} at step {row['step']} of {row['num_steps']}"
    if row["state"] == "finished" and last < row["num_steps"]:
        progress = f"finished {row['num_steps']} steps"
    elif row["state"] == "finished":
        return None if last_known else ("means and differences", "its last evaluation is damaged")
    if last < 0:
        return ("its scores", f"{progress}, no readable evaluation")
    return ("means and differences", f"{progress}, last evaluated at step {last}")


# ---- all runs


def _without_duplicates(read: Sequence[_Run]) -> list[_Run]:
    """One run for each name, config and seed: finished ones first, then the one with most steps, then the one whose
    directory has its id as name.
    """
    kept: dict[tuple[str, int], _Run] = {}
    readable = [run for run in read if run.row]

    def rank(run: _Run) -> tuple:
        named = run.path.endswith(f"{run.row['arm']}-s{run.row['seed']}")
        return run.row["state"] != "finished", -run.row["step"], not named, run.path

    for run in sorted(readable, key=rank):
        first = kept.setdefault((run.row["arm"], run.row["seed"]), run)
        if first is not run:
            run.damage = [("the run", f"has the name, config and seed of {first.path}, which is counted")]
            run.unfinished = []
    return list(kept.values())


def _tell_apart(kept: Sequence[_Run]) -> None:
    """Gives benchmarks of one name whose problems differ names of their own; that of most runs keeps it. A run that
    does not record its problems is taken to have those of most.
    """
    for benchmark in sorted({name for run in kept for name in run.sets}):
        count = Counter(run.sets[benchmark] for run in kept if benchmark in run.sets)
        usual = min(count, key=lambda content: (-count[content], content))
        for run in kept:
            if (content := run.sets.get(benchmark, usual)) != usual:
                digest = re.sub(r"[^0-9a-f]", "", content.rpartition(":")[2])[:6]
                run.named[benchmark] = f"{benchmark}-{digest}"
                reason = f"has other problems, answers or another grader than in most runs: it is {benchmark}-{digest}"
                run.unfinished.append((f"its scores on {benchmark}", reason))


def _training(kept: Sequence[_Run]) -> pd.DataFrame:
    curves = [run.training for run in kept]
    values = np.concatenate([np.empty((len(TRAINING_COLUMNS), 0)), *(curve.values for curve in curves)], axis=1)
    return pd.DataFrame(
        {
            "run": np.repeat(np.array([run.path for run in kept], dtype=object), [len(curve.step) for curve in curves]),
            "step": np.concatenate([np.empty(0, dtype=np.int64), *(curve.step for curve in curves)]),
            **dict(zip([column.name for column in TRAINING_COLUMNS], values, strict=True)),
        }
    )


def _scores(kept: Sequence[_Run]) -> pd.DataFrame:
    every = [(run, evaluation) for run in kept for evaluation in run.evaluations]
    sizes = [len(evaluation.problem) for _, evaluation in every]
    values = np.concatenate([np.empty((len(SCORES), 0)), *(evaluation.scores for _, evaluation in every)], axis=1)
    return pd.DataFrame(
        {
            "run": np.repeat(np.array([run.path for run, _ in every], dtype=object), sizes),
            "step": np.repeat(np.array([evaluation.step for _, evaluation in every], dtype=int), sizes),
            "benchmark": [name for run, evaluation in every for name in run.names(evaluation.benchmark)],
            "problem": [problem for _, evaluation in every for problem in evaluation.problem],
            "k": np.concatenate([np.empty(0, dtype=int), *(evaluation.k for _, evaluation in every)]),
            **dict(zip(SCORES, values, strict=True)),
        }
    )
