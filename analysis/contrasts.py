"""Estimates of arms and of their differences to the baseline, each with an interval."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from analysis.arms import Arm
from analysis.comparison import Comparison, ProblemScores, Side, common, compare
from analysis.outcomes import MEASURES, SHARES, Steps
from analysis.stats.bootstrap import resampling_weights
from analysis.stats.comparisons import interquartile_mean, probability_of_improvement
from analysis.stats.corrections import benjamini_hochberg, holm
from analysis.stats.small import beta_binomial_interval, clopper_pearson

LEVEL = 0.95
FEW = 50  # problems: up to this many, shares of a single run get exact or Bayesian intervals


@dataclass(frozen=True)
class Bootstrap:
    """`count` resamples of seeds and problems, for the ranks of arms, which have no closed form.

    A resample draws an arm's seeds with replacement, once for all benchmarks, and the problems of each benchmark, once
    for all arms; of each one fewer than there are (`bootstrap.resampling_weights`). The generator is seeded by `seed`
    and what is drawn, not by which other arms there are.
    """

    count: int
    seed: int

    def weights(self, what: str, size: int) -> np.ndarray:
        """The resamples of `what`, "count size"."""
        return _weights(self.count, self.seed, what, size)


@lru_cache(maxsize=32)
def _weights(count: int, seed: int, what: str, size: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(what.encode()), size])
    return resampling_weights(size, drawn=max(1, size - 1), count=count, rng=rng)


_COLUMNS = ["arm", "benchmark", "k", "score", "which", "value", "low", "high", "problems"]
_IS_SHARE = [score in SHARES for _, score in MEASURES]


def estimates(arms: Sequence[Arm], scores: ProblemScores, steps: Steps) -> pd.DataFrame:
    """Each arm's scores, averaged over its used seeds. One row an arm, benchmark (and their average) and measure.

    Columns: `arm`, `benchmark`, `k`, `score`, `which`, `value`, `low`, `high`, `problems`, `iqm` (the interquartile
    mean over runs and benchmarks), `seeds`. The interval is that of `intervals.estimate`, clipped to [0, 1] for a
    share; for one run on at most `FEW` problems of one benchmark it is beta-binomial for shares of answers and exact
    for scores of 0 or 1 (`small`). The interval of fewer than two problems is NaN.
    """
    rows = []
    for arm in arms:
        for one in compare([Side(1, arm.used)], scores, steps) if arm.used else []:
            interval = one.estimate.interval(LEVEL, shares=_IS_SHARE)
            low, high = np.where(_IS_SHARE, interval.clip(0, 1), interval)
            if len(arm.used) == 1 and 1 < one.problems <= FEW and one.cubes:
                low, high = _small_sample(one.cubes[0][:, 0], one.k, low, high)
            iqm = [interquartile_mean(of_run) for of_run in one.by_run[0]]
            rows += [(arm.id, *row, len(arm.used)) for row in _rows(one, low, high, iqm)]
    return pd.DataFrame(rows, columns=[*_COLUMNS, "iqm", "seeds"])


def contrasts(
    arms: Sequence[Arm], scores: ProblemScores, steps: Steps
) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """Each arm that counts minus the baseline, on the same problems, each with seeds of its own.

    Runs of the same seed are not paired: they have nothing in common but the order of their prompts, and pairing them
    finds less (docs/worlds.md).

    Problems and benchmarks that not all of the runs answered, and benchmarks on which they differ in k, are left out.

    Returns:
        The rows, with the columns of `estimates` except `iqm`; `prob_improvement`, the chance that a run of the arm
        scores higher than one of the baseline; `baseline_seeds`; `p`, the two-sided p-value of no difference; `p_holm`
        and `p_bh`, corrected for all arms that are compared on the row's benchmark and measure (Holm; Benjamini and
        Hochberg); `same`, whether both have the same score on every problem at every step: they are then one run under
        two names, without an interval or p-value. And what is left out of which difference, as (label, left out,
        reason).
    """
    rows, excluded = [], []
    baseline = next((arm for arm in arms if arm.role == "baseline"), None)
    for arm in arms:
        if baseline is None or arm is baseline or not arm.counted:
            continue
        same = scores.same_arms(arm, baseline)
        sides, seeds = [Side(1, arm.used), Side(-1, baseline.used)], (len(arm.used), len(baseline.used))
        for one in compare(sides, scores, steps):
            better = [probability_of_improvement(*own) for own in zip(*one.by_run, strict=True)]
            p, (low, high) = one.estimate.p_two_sided(), one.estimate.interval(LEVEL, shares=_IS_SHARE)
            if same:
                p, low, high = (np.full(len(p), np.nan) for _ in range(3))
            rows += [(arm.id, *row, *seeds, same, float(p[at])) for at, row in enumerate(_rows(one, low, high, better))]
        left_out = f"the difference to {baseline.label}"
        excluded += [(arm.label, left_out, reason) for reason in _not_shared(arm, baseline, scores)]
    columns = [*_COLUMNS, "prob_improvement", "seeds", "baseline_seeds", "same", "p"]
    frame = pd.DataFrame(rows, columns=columns)
    together = frame.groupby(["benchmark", "score", "which"])["p"]
    corrected = {
        name: together.transform(lambda p, correct=correct: correct(p.to_numpy(float))).astype(float)
        for name, correct in (("p_holm", holm), ("p_bh", benjamini_hochberg))
    }
    return frame.assign(**corrected), excluded


def _small_sample(values: np.ndarray, k: int, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The intervals with those of a single run's shares on few problems replaced; values are "measure problem"."""
    low, high = low.copy(), high.copy()
    for row, (_, score) in enumerate(MEASURES):
        if np.isnan(values[row]).any():
            continue
        if score in ("mean", "truncated"):
            low[row], high[row] = beta_binomial_interval(np.rint(values[row] * k).astype(int), k, level=LEVEL)
        if score in ("best", "maj"):
            low[row], high[row] = clopper_pearson(int(values[row].sum()), values.shape[1], level=LEVEL)
    return low, high


def _rows(one: Comparison, low: np.ndarray, high: np.ndarray, last_column: Sequence[float]) -> list[tuple]:
    return [
        (
            *(one.benchmark, one.k, score, which, float(one.estimate.value[row]) + 0.0),
            *(float(low[row]) + 0.0, float(high[row]) + 0.0, one.problems, last_column[row]),
        )
        for row, (which, score) in enumerate(MEASURES)
    ]


def _not_shared(arm: Arm, baseline: Arm, scores: ProblemScores) -> list[str]:
    reasons = []
    own, other = (common([scores.benchmarks(run) for run in side.used]) for side in (arm, baseline))
    for benchmark in sorted({*own, *other}):
        if benchmark not in own or benchmark not in other:
            reasons.append(f"only {(arm if benchmark in own else baseline).label} was evaluated on {benchmark}")
            continue
        runs = [*arm.used, *baseline.used]
        ks = {scores.k[run, benchmark] for run in runs}
        sets = [set(scores.problems[run, benchmark]) for run in runs]
        missing = len(set.union(*sets)) - len(set.intersection(*sets))
        if len(ks) > 1:
            reasons.append(f"{benchmark}: k is {' and '.join(map(str, sorted(ks)))}")
        elif missing:
            reasons.append(f"{benchmark}: {missing} problems were not answered by all runs")
    return reasons
