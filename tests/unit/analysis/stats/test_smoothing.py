import numpy as np
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from analysis.stats.curves import ema

FINITE = st.floats(-1e6, 1e6)


def test_ema_by_hand():
    np.testing.assert_allclose(ema(np.array([1.0, 2.0, 3.0]), alpha=0.5), [1, 1.5, 2.25])
    np.testing.assert_allclose(ema(np.array([0.0, 1.0, 1.0]), alpha=0.15), [0, 0.15, 0.2775])


def test_ema_leaves_a_missing_value_missing_and_goes_on_from_the_last_one():
    np.testing.assert_allclose(ema(np.array([np.nan, 1.0, np.nan, 2.0]), alpha=0.5), [np.nan, 1, np.nan, 1.5])


@given(arrays(float, st.integers(1, 30), elements=FINITE), st.floats(0.01, 1))
def test_ema_is_the_recursion(values, alpha):
    expected = [values[0]]
    for value in values[1:]:
        expected.append(alpha * value + (1 - alpha) * expected[-1])
    np.testing.assert_allclose(ema(values, alpha=alpha), expected, atol=1e-6)
