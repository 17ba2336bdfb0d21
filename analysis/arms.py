"""Arms: groups of runs that differ only in their seed. The baseline is one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pandas as pd

from opd.config import labels

MARK = "†"  # asked otherwise


@dataclass(frozen=True)
class Arm:
    """The runs of one config.

    Attributes:
        id: its name and config hash.
        name: of its runs.
        label: its name alone where it is unique, else with what tells it from others of the name (`labels.labels`).
        differs: the keys in which its config differs from the baseline's, or without one from most (`labels.telling`).
        runs: every readable run of it, by seed.
        used: the runs that its numbers come from: those that count, or where none counts, those that were evaluated.
        seeds: of the runs used.
        counted: whether the runs used count. Other arms are listed but not compared.
        role: "baseline", "teacher" (named `teacher` or `teacher-…`) or "arm".
        asked: what it was asked otherwise than the baseline (`asked.marked`); "" where alike.
    """

    id: str
    name: str
    label: str
    differs: str
    runs: tuple[str, ...]
    used: tuple[str, ...]
    seeds: tuple[int, ...]
    counted: bool
    role: str
    asked: str = ""

    @property
    def marked(self) -> str:
        """Its label, with a mark where its scores do not compare with the baseline's."""
        return f"{self.label} {MARK}" if self.asked else self.label


def group_arms(
    runs: pd.DataFrame,
    evaluated: Sequence[str],
    *,
    baseline: str,
    configs: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> tuple[list[Arm], str | None]:
    """The arms, the baseline first and teachers last, and why there is no baseline (None where there is one).

    Args:
        runs: `Records.runs`.
        evaluated: the runs with at least one readable evaluation.
        baseline: the arm to compare with: its label or id, or its name where no other has that.
        configs: arm → its config by dotted key, where that is known.
    """
    names = {str(arm): str(rows["name"].iloc[0]) for arm, rows in runs.groupby("arm")}
    candidates = _candidates(runs, names, _labels(names, configs, None), baseline)
    chosen = candidates[0] if len(candidates) == 1 else None
    # One that was chosen by more than its name keeps the label that it was chosen by.
    shown = _labels(names, configs, chosen if chosen and names[chosen] == baseline else None)
    reference = configs.get(chosen or "")
    if reference is None:
        reference = labels.common(list(configs.values()))
    arms, vary = [], labels.varying(configs.values())
    for arm, rows in runs.groupby("arm"):
        own, name, counted = configs.get(str(arm), {}), names[str(arm)], bool(rows["counted"].any())
        used = rows[rows["counted"]] if counted else rows[rows["run"].isin(evaluated)]
        is_teacher = name == "teacher" or name.startswith("teacher-")
        arms.append(
            Arm(
                id=str(arm),
                name=name,
                label=shown[str(arm)],
                differs=labels.text(labels.telling(labels.differences(own, reference), reference, vary)),
                runs=tuple(rows["run"]),
                used=tuple(used["run"]),
                seeds=tuple(int(seed) for seed in used["seed"]),
                counted=counted,
                role="baseline" if arm == chosen else "teacher" if is_teacher else "arm",
            )
        )
    arms.sort(key=lambda arm: (arm.role != "baseline", arm.role == "teacher", arm.label, arm.id))
    return arms, None if chosen else _no_baseline(candidates, shown, baseline)


def _labels(names: Mapping[str, str], configs: Mapping[str, Mapping[str, Any]], base: str | None) -> dict[str, str]:
    """Arm → label. Where a config is not known, an arm that shares its name is called by its id."""
    known = {arm: {**configs[arm], "name": name} for arm, name in names.items() if arm in configs}
    count = {name: list(names.values()).count(name) for name in set(names.values())}
    others = {arm: name if count[name] == 1 else arm for arm, name in names.items() if arm not in known}
    return labels.labels(known, base) | others


def _candidates(runs: pd.DataFrame, names: Mapping[str, str], shown: Mapping[str, str], baseline: str) -> list[str]:
    """The arms that `baseline` may mean: the one with that id or label, else all of that name that count."""
    counted = sorted({str(arm) for arm in runs.loc[runs["counted"], "arm"]})
    exact = [arm for arm in counted if baseline in (arm, shown[arm])]
    return exact or [arm for arm in counted if names[arm] == baseline]


def _no_baseline(candidates: Sequence[str], shown: Mapping[str, str], baseline: str) -> str:
    if candidates:
        choices = " or ".join(
            f"baseline={arm}" if shown[arm] == arm else f"baseline={arm} ({shown[arm]})" for arm in candidates
        )
        return f"several configs are named {baseline}; choose one: {choices}"
    return f"no finished and evaluated run is named {baseline}; choose another: baseline=NAME"
