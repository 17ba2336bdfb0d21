import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from analysis.stats.corrections import benjamini_hochberg, holm, holm_levels

P = arrays(float, st.integers(1, 12), elements=st.floats(0, 1))


def test_holm_by_hand():
    """Sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 0.04, and none is smaller than the one before it."""
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])


def test_benjamini_hochberg_by_hand():
    """Sorted 0.005 0.01 0.03 0.04, times 4/1 4/2 4/3 4/4: 0.02 0.02 0.04 0.04."""
    np.testing.assert_allclose(benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.005])), [0.02, 0.04, 0.04, 0.02])


@given(P)
@settings(deadline=None)
def test_benjamini_hochberg_is_scipys(p: np.ndarray):
    np.testing.assert_allclose(benjamini_hochberg(p), scipy.stats.false_discovery_control(p))


@given(P)
@settings(deadline=None)
def test_holm_rejects_what_the_procedure_rejects_step_by_step(p: np.ndarray):
    rejected, waiting = set(), list(np.argsort(p, kind="stable"))
    while waiting and p[waiting[0]] <= 0.05 / len(waiting):
        rejected.add(int(waiting.pop(0)))
    assert set(np.flatnonzero(p <= holm_levels(p, alpha=0.05))) == rejected
    away = np.abs(holm(p) - 0.05) > 1e-12  # not on the edge, where rounding decides
    assert set(np.flatnonzero((holm(p) <= 0.05) & away)) == rejected & set(np.flatnonzero(away))


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
def test_a_missing_test_is_no_comparison(correct):
    found = correct(np.array([0.01, np.nan, 0.02]))
    assert np.isnan(found[1])
    np.testing.assert_array_equal(found[[0, 2]], correct(np.array([0.01, 0.02])))
    assert np.isnan(correct(np.full(2, np.nan))).all()
