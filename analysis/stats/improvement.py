"""Robust comparisons of arms by their runs (Agarwal et al., Deep RL at the edge of the statistical precipice, 2021)."""

import numpy as np
from jaxtyping import Float


def probability_of_improvement(ours: Float[np.ndarray, "_ task"], theirs: Float[np.ndarray, "_ task"]) -> float:
    """P(X > Y) = mean over tasks and pairs of runs of [x > y] + [x = y] / 2: rliable's, 0.5 where nothing differs."""
    x, y = ours[:, None], theirs[None]
    return float(np.mean((x > y) + 0.5 * (x == y)))


def interquartile_mean(scores: Float[np.ndarray, "run task"]) -> float:
    """The mean of the middle half of all scores, runs and tasks together: rliable's.

    A quarter of them, rounded down, is cut from each end, so that fewer than four are not cut at all.
    """
    ordered = np.sort(scores, axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())
