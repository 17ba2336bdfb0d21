"""What each run scored: at every evaluated step, at its last one, and at its best one."""

from typing import Any, Literal, get_args

import pandas as pd

from analysis.evaluation import AVERAGE, SCORES
from analysis.load import Records

Which = Literal["last", "max"]
SHARES = ("mean", "best", "best_resampled", "maj", "truncated")
GRADES = ("mean", "best", "best_resampled", "maj")  # higher is better, so that there is a best one over training
MEASURES: tuple[tuple[Which, str], ...] = tuple(
    (which, score) for which in get_args(Which) for score in (SCORES if which == "last" else GRADES)
)

# (run, which, score) → the step at which the run is judged; no entry where that is not known.
Steps = dict[tuple[str, Which, str], int]


def by_step(records: Records) -> pd.DataFrame:
    """The mean over problems of each score. One row a run, step and benchmark, and one for the unweighted mean over the
    run's benchmarks (`AVERAGE`), whose k is 0 where its benchmarks differ in k.

    Columns: `run`, `step`, `benchmark`, `k`, `problems` and `SCORES`.
    """
    keys, scores = ["run", "step", "benchmark"], list(SCORES)
    grouped = records.scores.groupby(keys)
    each = grouped[scores].mean().assign(k=grouped["k"].first(), problems=grouped.size()).reset_index()
    grouped = each.groupby(["run", "step"])
    alike = grouped["k"].min() == grouped["k"].max()
    average = (
        grouped[scores]
        .mean()
        .assign(k=grouped["k"].min().where(alike, 0), problems=grouped["problems"].sum(), benchmark=AVERAGE)
    )
    columns = [*keys, "k", "problems", *scores]
    return pd.concat([each[columns], average.reset_index()[columns]]).sort_values(by=keys).reset_index(drop=True)


def chosen_steps(records: Records, scored: pd.DataFrame) -> Steps:
    """The steps at which each run is judged.

    `last` is the last evaluated step. `max` is the step after training began at which the score, averaged over the
    benchmarks, is highest, the earliest of equals: chosen on the test sets, hence too good.
    """
    average = scored[scored["benchmark"] == AVERAGE]
    last_known, max_known = (set(records.runs.loc[records.runs[known], "run"]) for known in ("last_known", "max_known"))
    steps: Steps = {}
    curves = {str(run): rows.set_index("step")[list(SCORES)] for run, rows in average.groupby("run")}
    for run, curve in curves.items():
        trained = curve[curve.index > 0] if curve.index.max() > 0 else curve
        for which, score in MEASURES:
            if which == "last" and run in last_known:
                steps[run, which, score] = int(curve.index.max())
            if which == "max" and run in max_known:
                steps[run, which, score] = int(trained.index.to_numpy()[trained[score].to_numpy().argmax()])
    return steps


def outcomes(scored: pd.DataFrame, steps: Steps) -> pd.DataFrame:
    """One row a run, benchmark and measure. Columns: `run`, `benchmark`, `k`, `score`, `which`, `step`, `value`."""
    columns = [str(column) for column in scored.columns]
    at: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for values in scored.itertuples(index=False, name=None):
        row = dict(zip(columns, values, strict=True))
        at.setdefault((row["run"], row["step"]), []).append(row)
    rows = [
        (run, row["benchmark"], row["k"], score, which, step, row[score])
        for (run, which, score), step in steps.items()
        for row in at[run, step]
    ]
    return pd.DataFrame(rows, columns=["run", "benchmark", "k", "score", "which", "step", "value"])
