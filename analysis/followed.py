"""Records with the training curves of runs that were followed elsewhere beside them."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.columns import TRAINING_COLUMNS
from analysis.load import Records
from analysis.text import printable
from analysis.wandb_export import Followed

STUDY = "wandb"
_RUN_ID = re.compile(r"(?P<name>.+)-(?P<hash>[0-9a-f]{8})-s(?P<seed>\d{1,15})", re.S)


def with_followed(records: Records, followed: Sequence[Followed]) -> Records:
    """`records`, and the curves of `followed`.

    A run that bears the id of one whose own curves could be read is left out; one whose curves could not gets them; any
    other is a run of its own, which has no scores. One whose name is no run id is an arm by itself, of seed 0.
    """
    known = zip(*(records.runs[name].tolist() for name in ("arm", "seed", "run")), strict=True)
    own: dict[tuple[str, int], str] = {(arm, seed): run for arm, seed, run in known}
    curved = set(records.training["run"])
    rows: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    left_out: list[tuple[str, str, str]] = []
    for one in followed:
        row = _row(one)
        run = own.setdefault((row["arm"], row["seed"]), row["run"])
        if run in curved:
            left_out.append((row["run"], "its curves", f"those of {run} are read"))
            continue
        curved.add(run)
        curves.append(_curves(run, one))
        if run == row["run"]:
            rows.append(row)
            left_out.append((run, "its scores", "Weights & Biases has no graded answers"))
    runs = _joined([records.runs, pd.DataFrame(rows, columns=list(records.runs.columns))])
    runs = runs.sort_values(by=["name", "arm", "seed", "run"], ignore_index=True)
    excluded = pd.DataFrame(left_out, columns=list(records.excluded.columns))
    return replace(
        records,
        runs=runs.astype(dict(records.runs.dtypes) if len(records.runs) else {}),
        training=_joined([records.training, *curves]),
        excluded=_joined([records.excluded, excluded]).sort_values(by=["run", "left_out", "reason"], ignore_index=True),
    )


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    whole = [frame for frame in frames if len(frame)]
    return pd.concat(whole, ignore_index=True) if whole else frames[0]


def _row(one: Followed) -> dict[str, Any]:
    parsed = _RUN_ID.fullmatch(one.name)
    shown, last = printable(one.name, limit=80), int(one.training.step[-1])
    name = printable(parsed["name"], limit=80) if parsed else shown
    return {
        "run": f"{STUDY}: {shown}",
        "arm": f"{name}-{parsed['hash']}" if parsed else name,
        "name": name,
        "study": STUDY,
        "seed": int(parsed["seed"]) if parsed else 0,
        "state": printable(one.state, limit=40),
        "step": last,
        "num_steps": last,
        "error": None,
        "counted": False,
        "last_known": False,
        "max_known": False,
    }


def _curves(run: str, one: Followed) -> pd.DataFrame:
    names = [column.name for column in TRAINING_COLUMNS]
    values = dict(zip(names, one.training.values, strict=True))
    return pd.DataFrame({"run": run, "step": one.training.step, **values})
