"""The scores of each run: at every evaluated step, at its last one, and at its best one."""

from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from analysis.evaluation import AVERAGE, SCORES
from analysis.load import Records
from analysis.stats.curves import collapsed, drift, drop_from_best, spikes

Which = Literal["last", "max"]
SHARES = ("mean", "best", "best_resampled", "maj", "truncated")
GRADES = ("mean", "best", "best_resampled", "maj")  # higher is better, so that they have a best step
MEASURES: tuple[tuple[Which, str], ...] = tuple(
    (which, score) for which in get_args(Which) for score in (SCORES if which == "last" else GRADES)
)

KEPT = 0.5  # a run collapsed if it ends with less than this share of its best mean@k
SPIKE_WINDOW, SPIKE_TIMES = 20, 5.0  # a spike is a gradient norm above 5 times the median of the 20 steps before
DRIFT_SHARE = 0.1  # of the steps: the training KL's last tenth against the tenth before

# (run, which, score) → the step at which the run is scored; no entry where that is unknown.
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
    """The steps at which each run is scored.

    `last` is the last evaluated step. `max` is the step after training began at which the score, averaged over the
    benchmarks, is highest, the earliest in a tie; chosen on the test sets, hence optimistic.
    """
    average = scored[scored["benchmark"] == AVERAGE]
    last_known, max_known = (set(records.runs.loc[records.runs[known], "run"]) for known in ("last_known", "max_known"))
    steps: Steps = {}
    for run, rows in average.groupby("run"):
        at = rows["step"].to_numpy()
        trained = (at > 0) | (at.max() <= 0)
        for which, score in MEASURES:
            if which == "last" and run in last_known:
                steps[str(run), which, score] = int(at.max())
            if which == "max" and run in max_known:
                values = np.where(trained, rows[score].to_numpy(float), -np.inf)
                steps[str(run), which, score] = int(at[values.argmax()])
    return steps


def outcomes(scored: pd.DataFrame, steps: Steps) -> pd.DataFrame:
    """One row a run, benchmark and measure. Columns: `run`, `benchmark`, `k`, `score`, `which`, `step`, `value`."""
    at: dict[tuple[str, int], list[dict[Any, Any]]] = {}
    for row in scored.to_dict("records"):
        at.setdefault((row["run"], row["step"]), []).append(row)
    rows = [
        (run, row["benchmark"], row["k"], score, which, step, row[score])
        for (run, which, score), step in steps.items()
        for row in at[run, step]
    ]
    return pd.DataFrame(rows, columns=["run", "benchmark", "k", "score", "which", "step", "value"])


def steadiness(records: Records, scored: pd.DataFrame) -> pd.DataFrame:
    """How stable the training of each run was. One row a run.

    Columns: `run`; `collapsed`, whether its last mean@k is less than `KEPT` of its best, and `fall`, its best minus its
    last, averaged over benchmarks, from the first step of training on (missing where no step of it was evaluated);
    `spikes`, the number of steps with a spike of the gradient norm; `kl_drift`, the training KL's last tenth minus the
    tenth before it, above 0 where it rises again.
    """
    average = scored[(scored["benchmark"] == AVERAGE) & (scored["step"] > 0)]
    curves = {str(run): rows.sort_values("step")["mean"].to_numpy(float) for run, rows in average.groupby("run")}
    steps = {
        str(run): {name: rows[name].to_numpy(float) for name in ("grad_norm", "divergence/reverse_kl")}
        for run, rows in records.training.groupby("run")
    }
    rows = []
    for run in map(str, records.runs["run"]):
        known, trained = curves.get(run), steps.get(run)
        rows.append(
            (
                run,
                None if known is None else collapsed(known, kept=KEPT),
                float("nan") if known is None else drop_from_best(known),
                None if trained is None else spikes(trained["grad_norm"], window=SPIKE_WINDOW, times=SPIKE_TIMES),
                float("nan") if trained is None else drift(trained["divergence/reverse_kl"], share=DRIFT_SHARE),
            )
        )
    return pd.DataFrame(rows, columns=["run", "collapsed", "fall", "spikes", "kl_drift"])
