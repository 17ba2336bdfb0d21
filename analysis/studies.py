"""Several exported studies as one: their runs together, each run once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.load import Records
from analysis.read_study import read_study
from analysis.study_schema import studies
from opd.records.files import RecordError

_BY_RUN = ("runs", "training", "scores", "answers", "excluded")


def read_studies(folder: Path) -> Records:
    """The records of a study, or of all that stand in a folder, whose runs are then named `<study>/<run>`.

    A run that several hold (of one name, config and seed) is taken from the first, by name, where it counts; the others
    are listed as left out. Raises `RecordError`.
    """
    found = studies(folder)
    if found == [folder]:
        return read_study(folder)
    return _joined([_named(one.name, _read(one)) for one in found])


def counted_runs(folder: Path) -> set[str]:
    """The ids of the finished and evaluated runs of a study, or of all in a folder. Raises `RecordError`."""
    runs = read_studies(folder).runs
    counted = runs[runs["counted"]]
    return {f"{arm}-s{seed}" for arm, seed in zip(counted["arm"], counted["seed"], strict=True)}


def _read(study: Path) -> Records:
    try:
        return read_study(study)
    except RecordError as error:
        raise RecordError(f"{study.name}/{error}") from error


def _named(study: str, records: Records) -> Records:
    frames = {name: getattr(records, name) for name in _BY_RUN}
    named = {name: frame.assign(run=[f"{study}/{run}" for run in frame["run"]]) for name, frame in frames.items()}
    return replace(records, **named, damage=[(f"{study}/{run}", *what) for run, *what in records.damage])


def _joined(every: Sequence[Records]) -> Records:
    runs = pd.concat([one.runs for one in every], ignore_index=True)
    first = runs.sort_values("counted", ascending=False, kind="stable").drop_duplicates(["arm", "seed"])
    counted = dict(zip(zip(first["arm"], first["seed"], strict=True), first["run"], strict=True))
    twice = [
        (run, "the run", f"has the name, config and seed of {counted[arm, seed]}, which is counted")
        for run, arm, seed in zip(runs["run"], runs["arm"], runs["seed"], strict=True)
        if counted[arm, seed] != run
    ]
    left = {run for run, *_ in twice}
    frames = {name: pd.concat([getattr(one, name) for one in every], ignore_index=True) for name in _BY_RUN}
    frames = {name: frame[~frame["run"].isin(left)] for name, frame in frames.items()}
    columns = frames["excluded"].columns
    excluded = pd.concat([frames["excluded"], pd.DataFrame(twice, columns=columns)]).sort_values(list(columns))
    details = {arm: own for one in reversed(every) for arm, own in one.details.items()}
    order = frames["runs"].sort_values(["name", "arm", "seed", "run"], ignore_index=True)
    kept = [row for one in every for row in one.damage if row[0] not in left]
    return Records(
        runs=order,
        **{name: frames[name].reset_index(drop=True) for name in ("training", "scores", "answers")},
        excluded=excluded.reset_index(drop=True),
        details={arm: details[arm] for arm in dict.fromkeys(order["arm"]) if arm in details},
        damage=sorted([*kept, *twice]),
        averaged=every[0].averaged,
    )
