"""The files of an exported study."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.columns import RUN_COLUMNS, TRAINING_COLUMNS, Column
from opd.records.run_dir import find_runs

CONFIGS = "configs.json"
EVALUATION = ["run", "step", "benchmark"]
AVERAGED = ("truncated", "length")  # scores that are exported as means of an evaluation


def _columns(file: str, *columns: Sequence[Column], **types: type) -> tuple[Column, ...]:
    """The given columns and those of these types, in the file."""
    own = [Column(name, "", kind) for name, kind in types.items()]
    return tuple(replace(column, source=f"{file}.parquet") for part in (*columns, own) for column in part)


# Table → its columns: those of the frame of `analysis.load.Records` that it keeps.
TABLES = {
    "runs": (
        *_columns("runs", run=str, arm=str),
        *_columns("runs", RUN_COLUMNS, counted=bool, last_known=bool, max_known=bool),
    ),
    "training": (*_columns("training", run=str, step=int), *_columns("training", TRAINING_COLUMNS)),
    "scores": _columns("scores", run=str, step=int, benchmark=str, problem=str, k=int, mean=float, maj=float),
    "evaluations": _columns("evaluations", run=str, step=int, benchmark=str, truncated=float, length=float),
    "answers": (
        *_columns("answers", run=str, step=int, benchmark=str, problem=str),
        Column("prediction", "answers.parquet", str, optional=True),
        *_columns("answers", answer=str, correct=bool),
        *(Column(name, "answers.parquet", str, optional=True) for name in ("question", "response")),
    ),
    "rollouts": _columns("rollouts", arm=str, step=int, record=str),
    "excluded": _columns("excluded", run=str, left_out=str, reason=str, damage=bool),
}


def studies(folder: Path) -> list[Path]:
    """The exported studies that a folder stands for: itself, or those right in it, by name; none where it has runs."""
    if (folder / "runs.parquet").is_file():
        return [folder]
    found = sorted(file.parent for file in folder.glob("*/runs.parquet"))
    return found if found and not find_runs(folder) else []
