"""Reads the training curves of a run, the lines of its `metrics.jsonl`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.columns import TRAINING_COLUMNS
from analysis.json_lines import read_table
from opd.printable import printable
from opd.records.files import RecordError, parse_lines, read_bytes
from opd.records.run_dir import RunDir

_NAMES = [column.name for column in TRAINING_COLUMNS]
_LENGTH = "evaluate/num_tokens"
_SCHEMA = pa.schema([("step", pa.int64()), *((name, pa.float64()) for name in (*_NAMES, _LENGTH))])
MOST_STEPS = 2**53  # beyond, not every tool that reads the exports can tell neighbouring steps apart


@dataclass(frozen=True)
class Training:
    """The metrics of each step, sorted by step; of a repeated step, those recorded last.

    Attributes:
        step: the steps; 0 is before training.
        values: `TRAINING_COLUMNS`, "column step"; NaN where no finite number was recorded.
        torn: whether the last line was cut off, and so dropped.
        length: step → mean length of the answers of its evaluation, as the run recorded it.
    """

    step: np.ndarray
    values: np.ndarray
    torn: bool
    length: Mapping[int, float] = field(default_factory=dict)


NO_TRAINING = Training(np.empty(0, dtype=np.int64), np.empty((len(_NAMES), 0)), torn=False)


def read_training(run: RunDir) -> Training:
    """Reads the run's curves.

    Raises:
        RecordError: where there is no file, a line is damaged, or a step is invalid.
    """
    content = read_bytes(run.metrics_file)
    whole = content[: content.rfind(b"\n") + 1]
    table = read_table(whole, _SCHEMA, optional=frozenset((*_NAMES, _LENGTH)))
    if table is None:
        step, values = _read_slowly(list(parse_lines(whole, run.metrics_file)))
    else:
        step = table["step"].to_numpy()
        values = np.stack([table[name].to_numpy() for name in (*_NAMES, _LENGTH)])
    if len(step) and not 0 <= step.min() <= step.max() < MOST_STEPS:
        raise RecordError(f"metrics.jsonl: {step.min() if step.min() < 0 else step.max()} is not a valid step")
    last = len(step) - 1 - np.unique(step[::-1], return_index=True)[1]
    step, values, length = step[last], values[:-1, last], values[-1, last]
    evaluated = np.flatnonzero(np.isfinite(length))
    lengths = dict(zip(step[evaluated].tolist(), length[evaluated].tolist(), strict=True))
    return Training(step, values, torn=len(whole) < len(content), length=lengths)


def _read_slowly(lines: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    steps = [line.get("step") for line in lines]
    for step in steps:
        if type(step) is not int or abs(step) > MOST_STEPS:
            raise RecordError(f"metrics.jsonl: {printable(repr(step), limit=40)} is not a valid step")
    names = (*_NAMES, _LENGTH)
    values = np.array([[_number(line.get(name)) for line in lines] for name in names]).reshape(len(names), -1)
    return np.array(steps, dtype=np.int64), values


def _number(value: Any) -> float:
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else math.nan
