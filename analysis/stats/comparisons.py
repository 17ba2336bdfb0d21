"""Comparisons of arms by their runs, and ranks of arms under resampling."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


def probability_of_improvement(ours: Float[np.ndarray, "_ task"], theirs: Float[np.ndarray, "_ task"]) -> float:
    """P(X > Y) = mean over tasks and pairs of runs of [x > y] + [x = y] / 2; 0.5 where nothing differs.

    As rliable computes it (Agarwal et al., Deep RL at the edge of the statistical precipice, 2021).
    """
    x, y = ours[:, None], theirs[None]
    return float(np.mean((x > y) + 0.5 * (x == y)))


def interquartile_mean(scores: Float[np.ndarray, "run task"]) -> float:
    """Mean of the middle half of all scores, over runs and tasks; fewer than four are not trimmed."""
    from scipy.stats import trim_mean

    return float(trim_mean(scores.ravel(), 0.25))


@dataclass(frozen=True)
class Ranks:
    """Rank of each arm by its mean (1 is highest; ties share the better rank), the interval of its rank over resamples,
    and the share of resamples in which it ranks first (ties split it).
    """

    rank: Float[np.ndarray, " arm"]
    low: Float[np.ndarray, " arm"]
    high: Float[np.ndarray, " arm"]
    best: Float[np.ndarray, " arm"]


def ranks(values: Float[np.ndarray, " arm"], draws: Float[np.ndarray, "count arm"], *, level: float) -> Ranks:
    """Ranks of the arms' means, with the central `level` share of their ranks under resampling.

    All arms must be resampled on the same problems.
    """
    from scipy.stats import rankdata

    tops = draws == draws.max(axis=1, keepdims=True)
    drawn = rankdata(-draws, method="min", axis=1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf")
    best = (tops / tops.sum(axis=1, keepdims=True)).mean(axis=0)
    return Ranks(rankdata(-values, method="min").astype(float), low, high, best)
