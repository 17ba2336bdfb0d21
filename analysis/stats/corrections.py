"""Corrections for multiple comparisons: adjusted p-values, in the order given. NaN stays NaN and is not counted."""

import numpy as np
from jaxtyping import Float


def holm(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """The largest of (m - i + 1) p_(i) over the ranks i up to a test's own, at most 1, of m tests.

    Rejecting those of at most α keeps the chance of any error at most α, whatever their dependence (Holm, A simple
    sequentially rejective multiple test procedure, 1979).
    """
    order, known = _order(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(known, 0, -1))
    return _put_back(p, order, adjusted)


def benjamini_hochberg(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """The smallest of m p_(i) / i over the ranks i from a test's own, at most 1, of m tests.

    Rejecting those of at most α keeps the expected share of errors among them at most α, for independent or positively
    dependent tests (Benjamini and Hochberg, Controlling the false discovery rate, 1995).
    """
    from scipy.stats import false_discovery_control

    order, _ = _order(p)
    return _put_back(p, order, false_discovery_control(p[order]) if len(order) else p[order])


def holm_levels(p: Float[np.ndarray, " tests"], *, alpha: float) -> Float[np.ndarray, " tests"]:
    """The α at which Holm's procedure judges each test: p is at most that exactly where its adjusted p is at most α.

    α / (m - i + 1) at rank i, and from the first test that is not significant on, the level of that test.
    """
    order, known = _order(p)
    levels = alpha / np.arange(known, 0, -1)
    missed = np.flatnonzero(p[order] > levels)
    if len(missed):
        levels[missed[0] :] = levels[missed[0]]
    return _put_back(p, order, levels)


def _order(p: np.ndarray) -> tuple[np.ndarray, int]:
    known = int((~np.isnan(p)).sum())
    return np.argsort(p, kind="stable")[:known], known  # NaN sorts last


def _put_back(p: np.ndarray, order: np.ndarray, values: np.ndarray) -> np.ndarray:
    result = np.full(len(p), np.nan)
    result[order] = np.minimum(values, 1)
    return result
