"""Training curves from Weights & Biases: from a CSV export, or through its API.

Its runs log the metrics of `metrics.jsonl` by the same names, and bear the names of their directories
(`opd.watch.tracker`). It has no graded answers.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import TRAINING_COLUMNS
from analysis.load import Records
from analysis.text import encodable
from analysis.training import MOST_STEPS
from opd.errors import UserError
from opd.printable import printable

STUDY = "wandb"
EXPORTED = "exported"  # the state of runs of a CSV export, which has none
_METRICS = [column.name for column in TRAINING_COLUMNS]
_STEPS = ("step", "Step", "_step")  # the last two are wandb's own counter: the step, unless a run was resumed
_RUN_ID = re.compile(r"(?P<name>.+)-(?P<hash>[0-9a-f]{8})-s(?P<seed>\d{1,15})", re.S)
_GROUP = re.compile(r"[A-Za-z_][\w./-]*: ")  # KEY: VALUE, as panels name groups


def read_wandb(source: str) -> pd.DataFrame:
    """Reads FILE.csv, several with commas between, or ENTITY/PROJECT; several files may hold parts of one run.

    A CSV export is either that of a panel, with a step column and a column `RUN - METRIC` for each run and metric
    (`__MIN` and `__MAX` are ignored), or that of a history, with a column `step` or `_step`, one for each metric, and
    optionally `run`, the name of the run (default: the file's name).

    Returns:
        One row a run and step, sorted: `run`, `state`, `step` and `TRAINING_COLUMNS`; NaN where nothing was logged.

    Raises:
        UserError: where there is no such file, project or login, or no value of a metric of `metrics.jsonl`.
    """
    read = map(_csv, map(Path, source.split(","))) if ".csv" in source.lower() else _project(source)
    points = _concat([pd.DataFrame(), *read])
    if points.empty:
        raise UserError(f"wandb={source}: has no value of a metric of metrics.jsonl, such as {_METRICS[0]}")
    keys = ["run", "state", "step"]
    last = points.drop_duplicates([*keys, "metric"], keep="last").astype({"step": "int64", "value": "float64"})
    wide = last.pivot(index=keys, columns="metric", values="value").reindex(columns=_METRICS)
    return wide.rename_axis(columns=None).reset_index()


def _csv(file: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"wandb={file}: {error.strerror}; give a CSV export") from None
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = printable(str(error), limit=100)
        raise UserError(f"wandb={file}: is not a CSV file in UTF-8 ({reason}); give a CSV export") from None
    _refuse_ambiguous(file)
    if not any(name in frame for name in _STEPS):
        raise UserError(f"wandb={file}: has no column {_STEPS[0]} or {_STEPS[-1]}; include the step in the export")
    steps = _steps(frame)
    for row in np.flatnonzero(steps.isna())[:1]:
        raise UserError(f"wandb={file}: row {row + 1} has no valid step")
    return _points(frame, steps, file.stem).assign(state=EXPORTED)


def _refuse_ambiguous(file: Path) -> None:
    """Refuses titles of which two are the same, and those of a group of runs."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        titles = [title for title in next(csv.reader(lines), []) if title]
    for title in titles:
        shown = printable(title, limit=80)
        run, _, metric = title.rpartition(" - ")
        if titles.count(title) > 1:
            raise UserError(f"wandb={file}: has the column {shown!r} twice; give each run a name of its own")
        if metric in _METRICS and _GROUP.match(run) and not _RUN_ID.fullmatch(run):
            raise UserError(f"wandb={file}: {shown!r} is a mean over a group of runs; export the panel without groups")


def _project(path: str) -> Iterator[pd.DataFrame]:
    """The curves of each run of a project."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"wandb={path}: wandb is not installed; run `python -m pip install wandb`, or give a CSV export, FILE.csv"
        ) from None
    if path.count("/") != 1:
        raise UserError(f"wandb={path}: is neither FILE.csv nor ENTITY/PROJECT")
    try:
        for run in wandb.Api().runs(path):
            yield history_points(run.scan_history(), run.name).assign(state=run.state)
    except (wandb.Error, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"wandb={path}: {reason}; log in with `wandb login`, and give the name of an existing project"
        ) from None


def history_points(history: Any, run: str) -> pd.DataFrame:
    """The history of a run as one row a value: `run`, `step`, `metric`, `value`. Of a repeated step the last counts."""
    frame = pd.DataFrame(list(history), dtype=object)
    steps = _steps(frame)
    return _points(frame[steps.notna()], steps.dropna(), run)


def _steps(frame: pd.DataFrame) -> pd.Series:
    """The step of each row; NaN where it is not a whole number from 0."""
    column = next((name for name in _STEPS if name in frame), None)
    steps = pd.to_numeric(frame[column], errors="coerce") if column else pd.Series(np.nan, frame.index)
    return steps.where((steps >= 0) & (steps < MOST_STEPS) & (steps % 1 == 0))


def _points(frame: pd.DataFrame, steps: pd.Series, run: str) -> pd.DataFrame:
    points = [pd.DataFrame(columns=["run", "step", "metric", "value"])]
    for title in map(str, frame.columns):
        of, _, metric = ("", "", title) if title in _METRICS else title.rpartition(" - ")
        if metric in _METRICS:
            name = of or (frame["run"].map(encodable) if "run" in frame else encodable(run))
            value = pd.to_numeric(frame[title], errors="coerce").astype(float)
            own = pd.DataFrame({"run": name, "step": steps, "metric": metric, "value": value})
            points.append(own[np.isfinite(value)])
    return _concat(points)


# ---- joined with the records


def with_imported(records: Records, imported: pd.DataFrame) -> Records:
    """`records` with the curves of `read_wandb` added.

    They complete a run of the same id that has no readable curves of its own, and are ignored for one that has. Any
    other run is added without scores; one whose name is no run id becomes an arm of its own, with seed 0.
    """
    own = dict(zip(zip(records.runs["arm"], records.runs["seed"], strict=True), records.runs["run"], strict=True))
    with_curves = set(records.training["run"])
    rows: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    left_out: list[tuple[str, str, str]] = []
    for (name, state), steps in imported.groupby(["run", "state"]):
        row = _row(str(name), str(state), int(steps["step"].max()))
        run = own.setdefault((row["arm"], row["seed"]), row["run"])
        if run in with_curves:
            left_out.append((row["run"], "its curves", f"those of {run} are used"))
            continue
        with_curves.add(run)
        curves.append(steps[["run", "step", *_METRICS]].assign(run=run))
        if run == row["run"]:
            rows.append(row)
            left_out.append((run, "its scores", "Weights & Biases has no graded answers"))
    runs = _concat([records.runs, pd.DataFrame(rows, columns=list(records.runs.columns))])
    excluded = _concat([records.excluded, pd.DataFrame(left_out, columns=list(records.excluded.columns))])
    return replace(
        records,
        runs=runs.sort_values(by=["name", "arm", "seed", "run"], ignore_index=True).astype(
            dict(records.runs.dtypes) if len(records.runs) else {}
        ),
        training=_concat([records.training, *curves]),
        excluded=excluded.sort_values(by=["run", "left_out", "reason"], ignore_index=True),
    )


def _concat(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


def _row(run: str, state: str, last_step: int) -> dict[str, Any]:
    """A row of `Records.runs`."""
    parsed, label = _RUN_ID.fullmatch(run), printable(run, limit=80)
    name = printable(parsed["name"], limit=80) if parsed else label
    return {
        "run": f"{STUDY}: {label}",
        "arm": f"{name}-{parsed['hash']}" if parsed else name,
        "name": name,
        "study": STUDY,
        "seed": int(parsed["seed"]) if parsed else 0,
        "state": printable(state, limit=40),
        "step": last_step,
        "num_steps": last_step,
        "error": None,
        "counted": False,
        "last_known": False,
        "max_known": False,
    }
