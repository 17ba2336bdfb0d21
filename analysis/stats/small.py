"""Exact and Bayesian intervals for one run on few problems, where a normal approximation fails."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int


def clopper_pearson(right: int, problems: int, *, level: float) -> tuple[float, float]:
    """The exact interval of a share, for scores of 0 or 1 a problem, such as best@k and maj@k.

    Its coverage is at least `level` (Clopper and Pearson, The use of confidence or fiducial limits, 1934).
    """
    from scipy.stats import binomtest

    interval = binomtest(right, problems).proportion_ci(level, "exact")
    return float(interval.low), float(interval.high)


# The grid of the posterior: the mean of the problems' chances, and the correlation of two answers to one problem.
_MEANS = np.linspace(0.0005, 0.9995, 1000)
_SPREADS = np.linspace(0.01, 0.99, 50)


def beta_binomial_interval(right: Int[np.ndarray, " problem"], k: int, *, level: float) -> tuple[float, float]:
    """The central posterior interval of the mean m of the problems' chances, from how many of k answers each got right.

    The chances are Beta(m / ρ - m, (1 - m) / ρ - (1 - m)) with the correlation ρ of two answers to one problem; the
    prior is Jeffreys' of a share, Beta(1/2, 1/2), on m and uniform on ρ. Computed on a grid.
    """
    counts = np.bincount(right, minlength=k + 1)
    log = np.tensordot(counts, _log_chances(k), 1) - 0.5 * (np.log(_MEANS) + np.log1p(-_MEANS))[:, None]
    weight = np.exp(log - log.max()).sum(axis=1)
    cumulative = np.cumsum(weight) / weight.sum()
    tail = (1 - level) / 2
    low, high = np.interp([tail, 1 - tail], cumulative, _MEANS)
    return (0.0 if not right.any() else float(low)), (1.0 if (right == k).all() else float(high))


@lru_cache(maxsize=8)
def _log_chances(k: int) -> Float[np.ndarray, "right mean spread"]:
    """The log-likelihood of each number of right answers, up to a constant of that number."""
    from scipy.special import betaln

    mean, size = _MEANS[:, None], (1 / _SPREADS - 1)[None]
    a, b = mean * size, (1 - mean) * size
    return np.stack([betaln(a + right, b + k - right) - betaln(a, b) for right in range(k + 1)])
