"""Which arm is best, and how sure that is."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Ranks:
    """Of each arm: its rank by the mean (1 is highest; equals share the better one), the interval of its rank over
    resamples, and the share of resamples in which it is best (equals share it).
    """

    rank: Float[np.ndarray, " arm"]
    low: Float[np.ndarray, " arm"]
    high: Float[np.ndarray, " arm"]
    best: Float[np.ndarray, " arm"]


def ranks(values: Float[np.ndarray, " arm"], draws: Float[np.ndarray, "count arm"], *, level: float) -> Ranks:
    """Ranks of the arms' means, with the central `level` share of their ranks in the resampled means.

    The draws must have met the same problems, and the same seeds where the arms share them.
    """
    tops = draws == draws.max(axis=1, keepdims=True)
    ends = [(1 - level) / 2, (1 + level) / 2]
    drawn = np.stack([_rank(row) for row in draws])
    low, high = np.quantile(drawn, ends, axis=0, method="inverted_cdf")
    return Ranks(_rank(values).astype(float), low, high, (tops / tops.sum(axis=1, keepdims=True)).mean(axis=0))


def _rank(values: np.ndarray) -> np.ndarray:
    """1 + how many are higher."""
    return 1 + len(values) - np.searchsorted(np.sort(values), values, side="right")
