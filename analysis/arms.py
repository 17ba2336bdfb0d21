"""Arms: groups of runs that differ only in their seed. The baseline is one of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Arm:
    """The runs of one config.

    Attributes:
        id: its name and config hash.
        label: its name alone where it is unique, else its id.
        runs: every readable run of it, by seed.
        used: the runs that its numbers come from: those that count, or where none counts, those that were evaluated.
        seeds: of the runs used.
        counted: whether the runs used count. Other arms are listed but not compared.
        role: "baseline", "teacher" (named `teacher` or `teacher-…`) or "arm".
    """

    id: str
    label: str
    runs: tuple[str, ...]
    used: tuple[str, ...]
    seeds: tuple[int, ...]
    counted: bool
    role: str


def group_arms(runs: pd.DataFrame, evaluated: Sequence[str], *, baseline: str) -> tuple[list[Arm], str | None]:
    """The arms, the baseline first and teachers last, and why there is no baseline (None where there is one).

    Args:
        runs: `Records.runs`.
        evaluated: the runs with at least one readable evaluation.
        baseline: the name of the arm to compare with, or its id where several share the name.
    """
    names = runs.groupby("arm")["name"].first()
    candidates = {
        str(arm)
        for arm, rows in runs.groupby("arm")
        if baseline in (arm, rows["name"].iloc[0]) and rows["counted"].any()
    }
    arms = []
    for arm, rows in runs.groupby("arm"):
        name, counted = str(names[arm]), bool(rows["counted"].any())
        used = rows[rows["counted"]] if counted else rows[rows["run"].isin(evaluated)]
        is_teacher = name == "teacher" or name.startswith("teacher-")
        arms.append(
            Arm(
                id=str(arm),
                label=name if (names == name).sum() == 1 else str(arm),
                runs=tuple(rows["run"]),
                used=tuple(used["run"]),
                seeds=tuple(int(seed) for seed in used["seed"]),
                counted=counted,
                role="baseline" if candidates == {arm} else "teacher" if is_teacher else "arm",
            )
        )
    arms.sort(key=lambda arm: (arm.role != "baseline", arm.role == "teacher", arm.label, arm.id))
    return arms, _no_baseline(candidates, baseline)


def _no_baseline(candidates: set[str], baseline: str) -> str | None:
    if len(candidates) == 1:
        return None
    if candidates:
        choices = " or ".join(f"baseline={arm}" for arm in sorted(candidates))
        return f"several configs are named {baseline}; choose one: {choices}"
    return f"no finished and evaluated run is named {baseline}; choose another: baseline=NAME"
