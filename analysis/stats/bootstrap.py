"""The hierarchical bootstrap over seeds and problems. Pure functions; randomness is an explicit generator."""

import numpy as np
from jaxtyping import Float


def resampling_weights(
    size: int, *, drawn: int, count: int, rng: np.random.Generator
) -> Float[np.ndarray, "count size"]:
    """`count` resamples of `drawn` out of `size` items with replacement: how often each was drawn, divided by `drawn`.

    With `drawn = size - 1` the variance of a resampled mean is s² / size with the unbiased s², where `drawn = size`
    gives (size - 1) / size of it, half with two seeds (Rao and Wu, Resampling inference with complex survey data,
    1988).
    """
    return rng.multinomial(drawn, np.full(size, 1 / size), size=count) / drawn


def resampled_means(
    values: Float[np.ndarray, "metric seed problem"],
    *,
    seeds: Float[np.ndarray, "count seed"],
    problems: Float[np.ndarray, "count problem"],
) -> Float[np.ndarray, "count metric"]:
    """Mean over seeds and problems under each row of weights: sum_s seeds[s] sum_i problems[i] values[:, s, i].

    Seeds and problems are crossed, since every seed answers the same problems: a resample draws seeds, draws problems,
    and takes every drawn seed on every drawn problem (Owen, The pigeonhole bootstrap, 2007). To draw new problems for
    each seed would treat what the problems have in common as if it averaged out over the seeds. The samples of a
    problem are nested in it and come along with it: what they add to the variance is in the problems' already.
    """
    metrics, num_seeds, num_problems = values.shape
    by_seed = problems @ values.reshape(metrics * num_seeds, num_problems).T
    return np.einsum("bms,bs->bm", by_seed.reshape(-1, metrics, num_seeds), seeds)
