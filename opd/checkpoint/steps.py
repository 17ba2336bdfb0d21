"""The checkpoints of a run, by step. Nothing here imports torch."""

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.checkpoint.atomic import find_damage
from opd.errors import UserError
from opd.records.files import Count, RecordError, as_record, read_json


def saved_steps(checkpoints: Path) -> list[int]:
    """Steps with a checkpoint, in order."""
    matches = (re.fullmatch(r"step_(\d{6,})", folder.name) for folder in checkpoints.glob("step_*"))
    return sorted(int(match[1]) for match in matches if match)


def step_folder(checkpoints: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`."""
    return checkpoints / f"step_{step:06d}"


def find_step_damage(checkpoints: Path, step: int) -> str | None:
    """`find_damage` of the checkpoint of `step`; a copy of another step's is damage too."""
    folder = step_folder(checkpoints, step)
    if damage := find_damage(folder):
        return damage
    try:
        progress = read_progress(folder)
    except RecordError as error:
        return str(error).removeprefix(f"{folder}/")
    return None if progress.step == step else f"it is the checkpoint of step {progress.step}"


@dataclass(frozen=True)
class Progress:
    """`state.json`: the checkpoint's step, and the step with the best score before it. `line` is the step's line of
    metrics where its evaluation is due, which comes after the checkpoint: the line is recorded with the scores.
    """

    step: Count
    best_step: Count | None
    best_score: float | None
    line: dict[str, Any] | None = None


def read_progress(folder: Path) -> Progress:
    """The progress at a checkpoint; raises `RecordError`."""
    return as_record(Progress, read_json(folder / "state.json"), str(folder / "state.json"))


def newest_intact(checkpoints: Path, warn: Callable[[str], None]) -> int | None:
    """The last step with an undamaged checkpoint, None if there are none; calls `warn` for later ones, all damaged.

    Raises:
        UserError: where there are checkpoints and all of them are damaged.
    """
    steps = saved_steps(checkpoints)
    for step in reversed(steps):
        folder = step_folder(checkpoints, step)
        if (damage := find_step_damage(checkpoints, step)) is None:
            return step
        if step == steps[0]:
            raise UserError(
                f"{folder}: the checkpoint is damaged ({damage}), and there is none before it; delete {checkpoints} to "
                "begin again at step 1"
            )
        warn(f"{folder}: the checkpoint is damaged ({damage}); going on from the one before it")
    return None


def prune(checkpoints: Path, *, keep: int, best: int | None) -> None:
    """Deletes all but the newest `keep` checkpoints and the one of step `best`."""
    for step in saved_steps(checkpoints)[:-keep]:
        if step != best:
            with suppress(FileNotFoundError):
                shutil.rmtree(step_folder(checkpoints, step))
