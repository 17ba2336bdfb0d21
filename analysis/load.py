"""Run directories → tidy frames. What cannot be used is listed by name with the reason, and counts nowhere.

`analysis.columns` declares what is read of a run, with where it comes from and its type. Paths are relative to the
folder that was loaded: the frames are a pure function of the records in it.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.cache import Cache, Place
from analysis.columns import RUN_COLUMNS, TRAINING_COLUMNS, Column
from analysis.contents import Contents, read_contents
from analysis.details import Details, read_details
from analysis.evaluation import SCORES, Evaluation, Example
from analysis.processes import spread
from analysis.text import printable
from analysis.training import Training
from opd.records.run_dir import RunDir, find_runs

FEWEST = 40  # runs to read: of fewer, starting processes takes longer than reading
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
        damage: those rows of `excluded` that are there because a record is broken, missing, foreign or there twice,
            not because its run has not finished.
        whole: those of `SCORES` that are known of an evaluation only, and that each of its problems has the mean of.
    """

    runs: pd.DataFrame
    training: pd.DataFrame
    scores: pd.DataFrame
    answers: pd.DataFrame
    excluded: pd.DataFrame
    details: Mapping[str, Details] = field(default_factory=dict)
    damage: list[tuple[str, str, str]] = field(default_factory=list)
    whole: tuple[str, ...] = ()


def load(root: Path, *, cache: Cache | None = None) -> Records:
    """Reads every run directory under `root`. No record, however broken, makes it raise.

    With `cache`, what has been read before and has not changed since is taken from there.
    """
    unreadable: list[OSError] = []
    folders = find_runs(root, on_error=unreadable.append)
    contents = _contents(folders, cache)
    if cache:
        cache.tidy(folders)
    read: list[_Run] = []
    alike: dict[str, int] = {}
    for folder, found in zip(folders, contents, strict=True):
        path = _relative(folder.path, root)
        alike[path] = alike.get(path, 0) + 1
        read.append(_judged(path if alike[path] == 1 else f"{path} #{alike[path]}", folder, found))
    kept = sorted(_without_duplicates(read), key=lambda run: [run.row[key] for key in ("name", "arm", "seed", "run")])
    details, torn = read_details((run.row["arm"], run.path, run.folder) for run in kept)
    damage = sorted((run.path, *what) for run in read for what in run.damage) + torn
    damage += sorted((_relative(Path(error.filename), root), "all in it", str(error.strerror)) for error in unreadable)
    return Records(
        runs=_frame(
            ("run", "arm", *_names(RUN_COLUMNS), "counted", "last_known", "max_known"),
            [tuple(run.row.values()) for run in kept],
        ).astype({"error": "str"}),  # where no run has one too
        training=_training(kept),
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
            ("run", "left_out", "reason"),
            sorted([*damage, *((run.path, *what) for run in read for what in run.unfinished)]),
        ),
        details=details,
        damage=damage,
    )


def _contents(folders: Sequence[RunDir], cache: Cache | None) -> list[Contents]:
    """What each run holds, in order."""
    if cache is None:
        return list(spread(read_contents, folders, fewest=FEWEST))
    places = [cache.of(folder) for folder in folders]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kept = list(pool.map(Place.contents, places))
    left = [place for place, found in zip(places, kept, strict=True) if found is None]
    read = spread(Place.read, left, fewest=FEWEST)
    return [next(read) if found is None else found for found in kept]


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


def _judged(path: str, folder: RunDir, found: Contents) -> _Run:
    """The run with what its numbers may be used for, and what it is left out of."""
    run = _Run(path, folder, {}, found.training, found.evaluations, list(found.damage))
    run.damage += [(f"its evaluation at step {step}", reason) for step, reason in found.damaged.items()]
    run.damage += [("its best score over training", "an evaluation of it is damaged")] if found.damaged else []
    if not found.row:
        return run
    last = found.evaluations[-1].step if found.evaluations else -1
    last_known = last > max(found.damaged, default=-1)
    not_counted = _not_counted(found.row, last, last_known)
    if not_counted:
        (run.damage if found.row["state"] == "finished" else run.unfinished).append(not_counted)
    known = {"counted": not not_counted, "last_known": last_known, "max_known": last >= 0 and not found.damaged}
    run.row = {"run": path, **found.row, **known}
    return run


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
            run.damage = [("the run", f"has the name, config and seed of {first.path}, which is counted")]
            run.unfinished = []
    return list(kept.values())


def _training(kept: Sequence[_Run]) -> pd.DataFrame:
    curves = [run.training for run in kept]
    values = np.concatenate([np.empty((len(TRAINING_COLUMNS), 0)), *(curve.values for curve in curves)], axis=1)
    return pd.DataFrame(
        {
            "run": np.repeat(np.array([run.path for run in kept], dtype=object), [len(curve.step) for curve in curves]),
            "step": np.concatenate([np.empty(0, dtype=np.int64), *(curve.step for curve in curves)]),
            **dict(zip(_names(TRAINING_COLUMNS), values, strict=True)),
        }
    )


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
