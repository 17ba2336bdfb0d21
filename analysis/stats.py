"""Smoothing and bootstrap intervals. Pure functions of numbers; randomness is an explicit generator."""

import numpy as np
import pandas as pd
from jaxtyping import Float


def ema(values: Float[np.ndarray, " time"], *, alpha: float) -> Float[np.ndarray, " time"]:
    """Exponential moving average s_0 = x_0, s_t = alpha * x_t + (1 - alpha) * s_(t-1).

    A missing value (NaN) stays missing and the next one continues from the last s. alpha = 1 changes nothing.
    """
    smoothed = pd.Series(values, dtype=float).ewm(alpha=alpha, adjust=False, ignore_na=True).mean().to_numpy()
    return np.where(np.isnan(values), np.nan, smoothed)


def resampling_weights(size: int, *, count: int, rng: np.random.Generator) -> Float[np.ndarray, "count size"]:
    """`count` draws of `size` things with replacement: how often each was drawn, divided by `size`. Rows sum to 1."""
    return rng.multinomial(size, np.full(size, 1 / size), size=count) / size


def resampled_means(
    values: Float[np.ndarray, "metric seed problem"],
    *,
    seeds: Float[np.ndarray, "count seed"],
    problems: Float[np.ndarray, "count problem"],
) -> Float[np.ndarray, "count metric"]:
    """Mean over seeds and problems under each row of weights: sum_s seeds[s] sum_i problems[i] values[:, s, i].

    Seeds and problems are crossed, since every seed answers the same problems: a resample draws seeds, draws problems,
    and takes every drawn seed on every drawn problem (Owen, The pigeonhole bootstrap, 2007). To draw new problems for
    each seed would treat what the problems have in common as if it averaged out over the seeds.
    """
    metrics, num_seeds, num_problems = values.shape
    by_seed = problems @ values.reshape(metrics * num_seeds, num_problems).T
    return np.einsum("bms,bs->bm", by_seed.reshape(-1, metrics, num_seeds), seeds)


def percentile_interval(draws: Float[np.ndarray, "count metric"], *, level: float) -> Float[np.ndarray, "2 metric"]:
    """The central `level` share of the draws of each metric: its (1 - level) / 2 and (1 + level) / 2 quantiles."""
    return np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
