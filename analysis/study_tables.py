"""What the files of an exported study hold."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.columns import RUN_COLUMNS, TRAINING_COLUMNS, Column

CONFIGS = "configs.json"
EVALUATION = ["run", "step", "benchmark"]
WHOLE = ("truncated", "length")  # scores that are kept of an evaluation only


def _table(file: str, **kinds: type) -> tuple[Column, ...]:
    return tuple(Column(name, f"{file}.parquet", kind) for name, kind in kinds.items())


def _from(file: str, columns: Sequence[Column]) -> tuple[Column, ...]:
    return tuple(replace(column, source=f"{file}.parquet") for column in columns)


# Table → its columns: those of the frame of `analysis.load.Records` that it keeps.
TABLES = {
    "runs": (
        *_table("runs", run=str, arm=str),
        *_from("runs", RUN_COLUMNS),
        *_table("runs", counted=bool, last_known=bool, max_known=bool),
    ),
    "training": (*_table("training", run=str, step=int), *_from("training", TRAINING_COLUMNS)),
    "scores": _table("scores", run=str, step=int, benchmark=str, problem=str, k=int, mean=float, maj=float),
    "evaluations": _table("evaluations", run=str, step=int, benchmark=str, truncated=float, length=float),
    "answers": (
        *_table("answers", run=str, step=int, benchmark=str, problem=str),
        Column("prediction", "answers.parquet", str, optional=True),
        *_table("answers", answer=str, correct=bool),
    ),
    "rollouts": _table("rollouts", arm=str, step=int, record=str),
    "excluded": _table("excluded", run=str, left_out=str, reason=str, damage=bool),
}


def is_study(folder: Path) -> bool:
    """Whether the folder is one of exports."""
    return (folder / "runs.parquet").is_file()
