"""Arms and their differences to the baseline, each with an interval."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from analysis.arms import Arm
from analysis.compared import Compared, ProblemScores, Side, compare, shared
from analysis.outcomes import MEASURES, SHARES, Steps
from analysis.stats.bootstrap import resampling_weights
from analysis.stats.corrections import benjamini_hochberg, holm
from analysis.stats.improvement import interquartile_mean, probability_of_improvement
from analysis.stats.small import beta_binomial_interval, clopper_pearson

LEVEL = 0.95
FEW = 50  # problems: up to so many, one run's shares have exact or Bayesian intervals


@dataclass(frozen=True)
class Bootstrap:
    """`count` resamples of seeds and problems, for what no formula tells: the ranks of arms.

    One resample draws seeds with replacement, once for all benchmarks and all arms that have the same seeds; and the
    problems of each benchmark, once for all arms. It draws one fewer than there are (`bootstrap.resampling_weights`).
    All arms meet the same resamples: the generator is seeded by `seed` and what is drawn, not by which arms there are.
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
_SHARE_ROWS = [score in SHARES for _, score in MEASURES]


def estimates(arms: Sequence[Arm], scores: ProblemScores, steps: Steps) -> pd.DataFrame:
    """Each arm's scores, the mean over its used seeds. One row an arm, benchmark (and their average) and measure.

    Columns: `arm`, `benchmark`, `k`, `score`, `which`, `value`, `low`, `high`, `problems`, `iqm` (the interquartile
    mean over runs and benchmarks), `seeds`. The interval is that of `intervals.estimate`, within [0, 1] for a share; of
    one run on at most `FEW` problems of one benchmark it is beta-binomial for shares of answers and exact for scores of
    0 or 1 (`small`). The interval of fewer than two problems is NaN.
    """
    rows = []
    for arm in arms:
        for found in compare([Side(1, arm.used)], scores, steps, paired=False) if arm.used else []:
            low, high = _within_shares(found.estimate.interval(LEVEL))
            if len(arm.used) == 1 and 1 < found.problems <= FEW and found.cubes:
                low, high = _of_few(found.cubes[0][:, 0], found.k, low, high)
            iqm = [interquartile_mean(of_run) for of_run in found.by_run[0]]
            rows += [(arm.id, *row, len(arm.used)) for row in _rows(found, low, high, iqm)]
    return pd.DataFrame(rows, columns=[*_COLUMNS, "iqm", "seeds"])


def contrasts(
    arms: Sequence[Arm], scores: ProblemScores, steps: Steps
) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """Each settled arm minus the baseline, paired over problems and, where both have the same seeds, over seeds.

    A problem or a benchmark that not all of the runs were asked, and a benchmark on which they differ in k, stay out of
    the difference.

    Returns:
        The rows, with the columns of `estimates` but for `iqm`; `prob_improvement`, the chance that a run of the arm
        scores higher than one of the baseline; `baseline_seeds`; `paired` (over seeds); `p`, two-sided, of no
        difference; and `p_holm` and `p_bh`, corrected for all arms that are compared on the row's benchmark and measure
        (Holm; Benjamini and Hochberg). And what stays out of which difference, as (label, left out, reason).
    """
    rows, excluded = [], []
    baseline = next((arm for arm in arms if arm.role == "baseline"), None)
    for arm in arms:
        if baseline is None or arm is baseline or not arm.settled:
            continue
        paired = arm.seeds == baseline.seeds
        sides, seeds = [Side(1, arm.used), Side(-1, baseline.used)], (len(arm.used), len(baseline.used))
        for found in compare(sides, scores, steps, paired=paired):
            better = [probability_of_improvement(*own) for own in zip(*found.by_run, strict=True)]
            p, (low, high) = found.estimate.p_two_sided(), found.estimate.interval(LEVEL)
            rows += [
                (arm.id, *row, *seeds, paired, float(p[at])) for at, row in enumerate(_rows(found, low, high, better))
            ]
        excluded += [
            (arm.label, f"the difference to {baseline.label}", reason) for reason in _asked_apart(arm, baseline, scores)
        ]
    frame = pd.DataFrame(rows, columns=[*_COLUMNS, "prob_improvement", "seeds", "baseline_seeds", "paired", "p"])
    together = frame.groupby(["benchmark", "score", "which"])["p"]
    corrected = {
        name: together.transform(lambda p, correct=correct: correct(p.to_numpy(float))).astype(float)
        for name, correct in (("p_holm", holm), ("p_bh", benjamini_hochberg))
    }
    return frame.assign(**corrected), excluded


def _within_shares(interval: np.ndarray) -> np.ndarray:
    return np.where(_SHARE_ROWS, interval.clip(0, 1), interval)


def _of_few(values: np.ndarray, k: int, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The intervals, with those of one run's shares on few problems in their place; values are "measure problem"."""
    low, high = low.copy(), high.copy()
    for row, (_, score) in enumerate(MEASURES):
        if np.isnan(values[row]).any():
            continue
        if score in ("mean", "truncated"):
            low[row], high[row] = beta_binomial_interval(np.rint(values[row] * k).astype(int), k, level=LEVEL)
        if score in ("best", "maj"):
            low[row], high[row] = clopper_pearson(int(values[row].sum()), values.shape[1], level=LEVEL)
    return low, high


def _rows(found: Compared, low: np.ndarray, high: np.ndarray, more: Sequence[float]) -> list[tuple]:
    return [
        (
            *(found.benchmark, found.k, score, which, float(found.estimate.value[row]) + 0.0),
            *(float(low[row]) + 0.0, float(high[row]) + 0.0, found.problems, more[row]),
        )
        for row, (which, score) in enumerate(MEASURES)
    ]


def _asked_apart(arm: Arm, baseline: Arm, scores: ProblemScores) -> list[str]:
    reasons = []
    own, other = (shared([scores.benchmarks(run) for run in side.used]) for side in (arm, baseline))
    for benchmark in sorted({*own, *other}):
        if benchmark not in own or benchmark not in other:
            reasons.append(f"only {(arm if benchmark in own else baseline).label} was asked {benchmark}")
            continue
        runs = [*arm.used, *baseline.used]
        ks = {scores.k[run, benchmark] for run in runs}
        sets = [set(scores.problems[run, benchmark]) for run in runs]
        apart = len(set.union(*sets)) - len(set.intersection(*sets))
        if len(ks) > 1:
            reasons.append(f"{benchmark}: k is {' and '.join(map(str, sorted(ks)))}")
        elif apart:
            reasons.append(f"{benchmark}: {apart} problems were not asked of all runs")
    return reasons
