"""Training curves from Weights & Biases: a CSV export, or its API. Its runs log what `metrics.jsonl` holds, by the same
names, and are called as their directories are (`opd.watch.tracker`); graded answers it has none of.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.columns import TRAINING_COLUMNS
from analysis.text import encodable
from analysis.training import MOST_STEPS, Training
from opd.errors import UserError

_NAMES = {column.name: position for position, column in enumerate(TRAINING_COLUMNS)}
_STEPS = ("step", "Step", "_step")  # wandb's own counter, the last two, is the step where a run never went back
_RUN = "run"
EXPORTED = "exported"  # the state of a run of a CSV export, which does not say


@dataclass(frozen=True)
class Followed:
    """A run that Weights & Biases has followed.

    Attributes:
        name: what it is called there.
        state: what it says of itself there, or `EXPORTED`.
        training: its curves.
    """

    name: str
    state: str
    training: Training


def read_export(source: str) -> list[Followed]:
    """The runs of FILE.csv, or of several with commas between, or of ENTITY/PROJECT; in order of their names.

    A CSV export is one of two: of a panel, with a column for the step and one named `RUN - METRIC` for each run and
    metric (`__MIN` and `__MAX` are passed over); or of a history, with a column `step` or `_step`, one for each metric,
    and one, `run`, for the name of the run (without it the run has the file's name). Several files of one run are
    taken together.

    Raises:
        UserError: where there is no such file, project or login, or nothing in it that `metrics.jsonl` names.
    """
    points: dict[str, _Points] = {}
    states: dict[str, str] = {}
    if ".csv" in source.lower():
        for file in source.split(","):
            for run, step, metric, value in _rows(Path(file)):
                points.setdefault(run, {}).setdefault(step, {})[metric] = value
    else:
        for run in _project(source):
            states[run.name] = run.state
            points[run.name] = _history(run.scan_history())
    if not any(points.values()):
        raise UserError(f"wandb={source}: holds no value of a metric that metrics.jsonl has, as {next(iter(_NAMES))}")
    return [
        Followed(encodable(name), states.get(name, EXPORTED), _training(found))
        for name, found in sorted(points.items())
        if found
    ]


_Points = dict[int, dict[str, float]]  # step → metric → value


def _training(points: _Points) -> Training:
    steps = sorted(points)
    values = np.full((len(_NAMES), len(steps)), np.nan)
    for column, step in enumerate(steps):
        for metric, value in points[step].items():
            values[_NAMES[metric], column] = value
    return Training(np.array(steps, dtype=np.int64), values, torn=False)


def _history(rows: Iterable[Mapping[str, Any]]) -> _Points:
    """The steps of a history; of a step that is there twice, for the run went back, what was logged last."""
    points: _Points = {}
    for row in rows:
        step = next((_step(row[name]) for name in _STEPS if name in row), None)
        found = {name: _number(row[name]) for name in _NAMES if name in row}
        if step is not None and found:
            points[step] = found
    return points


# ---- CSV


def _rows(file: Path) -> Iterator[tuple[str, int, str, float]]:
    """(run, step, metric, value) of every cell that holds one."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"wandb={file}: {error.strerror}; give a CSV export") from None
    except UnicodeDecodeError:
        raise UserError(f"wandb={file}: is not text in UTF-8; give a CSV export") from None
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        head = next(lines, [])
        step_at = next((head.index(name) for name in _STEPS if name in head), None)
        if step_at is None:
            raise UserError(f"wandb={file}: has no column {_STEPS[0]} or {_STEPS[-1]}; export one with the step")
        columns = _columns(head, file.stem)
        if not columns:
            raise UserError(f"wandb={file}: has no column of a metric that metrics.jsonl has, as {next(iter(_NAMES))}")
        run_at = head.index(_RUN) if _RUN in head else None
        for line in lines:
            if not line:
                continue
            if len(line) != len(head):
                raise UserError(f"wandb={file}, line {lines.line_num}: has {len(line)} cells, not {len(head)}")
            if (step := _step(line[step_at])) is None:
                shown = line[step_at][:40]
                raise UserError(f"wandb={file}, line {lines.line_num}: {shown!r} is no step")
            for at, (run, metric) in columns.items():
                if line[at] != "":
                    yield run if run_at is None else line[run_at], step, metric, _number(line[at])
    except csv.Error as error:
        raise UserError(f"wandb={file}, line {lines.line_num}: {error}") from None


def _columns(head: list[str], run: str) -> dict[int, tuple[str, str]]:
    """Column → run and metric."""
    found = {}
    for at, title in enumerate(head):
        name, dash, metric = title.rpartition(" - ")
        if title in _NAMES:
            found[at] = (run, title)
        elif dash and metric in _NAMES:
            found[at] = (name, metric)
    return found


def _step(value: Any) -> int | None:
    number = _number(value)
    return int(number) if 0 <= number < MOST_STEPS and number == int(number) else None


def _number(value: Any) -> float:
    """A number that JSON or CSV holds; NaN where it holds none, or "NaN" or "Infinity" in words."""
    if isinstance(value, str) and not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value.strip()):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


# ---- API


def _project(path: str) -> Iterator[Any]:
    """The runs of a project, as wandb's client has them."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"wandb={path}: wandb is not installed; run `python -m pip install wandb`, or give a CSV export, FILE.csv"
        ) from None
    if path.count("/") != 1:
        raise UserError(f"wandb={path}: is neither FILE.csv nor ENTITY/PROJECT")
    try:
        yield from wandb.Api().runs(path)
    except (wandb.Error, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"wandb={path}: {reason}; log in with `wandb login`, and give a project that is there"
        ) from None
