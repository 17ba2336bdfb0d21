import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from opd.objective.advantage import discounted_return, whiten


def plain_return(signal, mask, gamma):
    total = torch.zeros_like(signal)
    for row in range(signal.shape[0]):
        carried = 0.0
        for time in reversed(range(signal.shape[1])):
            carried = carried * gamma + (float(signal[row, time]) if mask[row, time] else 0.0)
            total[row, time] = carried if mask[row, time] else 0.0
    return total


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("time", [0, 1, 2, 3, 8, 17])
def test_return_equals_the_plain_recursion(gamma, time):
    generator = torch.Generator().manual_seed(time)
    signal = torch.randn(3, time, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, time, generator=generator) > 0.3
    torch.testing.assert_close(discounted_return(signal, mask, gamma), plain_return(signal, mask, gamma))


def test_discount_counts_masked_positions():
    signal, mask = torch.tensor([[1.0, 5.0, 1.0]]), torch.tensor([[True, False, True]])
    assert discounted_return(signal, mask, 0.5).tolist() == [[1.25, 0.0, 1.0]]


def test_gamma_zero_is_identity():
    signal = torch.randn(2, 50)
    assert torch.equal(discounted_return(signal, torch.ones(2, 50, dtype=torch.bool), 0.0), signal)


@pytest.mark.parametrize("gamma", [1e-300, 0.5, 0.999, 1.0])
def test_long_responses_stay_accurate(gamma):
    signal = torch.full((1, 8192), 0.1)
    found = discounted_return(signal, torch.ones(1, 8192, dtype=torch.bool), gamma)
    value = float(signal[0, 0])
    expected = value * 8192 if gamma == 1 else value * (1 - gamma**8192) / (1 - gamma)
    assert math.isclose(found[0, 0], expected, rel_tol=1e-6)


def test_what_is_masked_does_not_leak():
    signal, mask = torch.tensor([[1.0, math.nan, 2.0]]), torch.tensor([[True, False, True]])
    assert discounted_return(signal, mask, 1.0).tolist() == [[3.0, 0.0, 2.0]]
    white, mean, std = whiten(signal, mask, "batch", torch.zeros(1, dtype=torch.long))
    assert white.tolist() == [[-1.0, 0.0, 1.0]]
    assert (float(mean), float(std)) == (1.5, 0.5)


ADVANTAGE = torch.tensor([[1.0, 3.0], [5.0, 9.0], [0.0, 4.0], [2.0, 100.0]])
MASK = torch.tensor([[True, True], [True, True], [True, True], [True, False]])
GROUP = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("level", "segments"),
    [("sample", [[0], [1], [2], [3]]), ("group", [[0, 1], [2, 3]]), ("batch", [[0, 1, 2, 3]])],
)
def test_levels_by_hand(level, segments):
    white, mean, std = whiten(ADVANTAGE, MASK, level, GROUP)
    expected, means, stds = torch.zeros_like(ADVANTAGE), [], []
    for rows in segments:
        values = ADVANTAGE[rows][MASK[rows]]
        m, s = values.mean(), values.std(correction=0)
        expected[rows] = torch.where(MASK[rows], (ADVANTAGE[rows] - m) / (s if s > 0 else 1), 0)
        means += [m] * len(values)
        stds += [s] * len(values)
    torch.testing.assert_close(white, expected)
    torch.testing.assert_close(mean.float(), torch.stack(means).mean())
    torch.testing.assert_close(std.float(), torch.stack(stds).mean())


def test_none_changes_nothing():
    white, mean, std = whiten(ADVANTAGE, MASK, "none", GROUP)
    assert torch.equal(white, torch.where(MASK, ADVANTAGE, 0))
    assert (float(mean), float(std)) == (0.0, 1.0)


@pytest.mark.parametrize("level", ["sample", "group", "batch"])
@settings(deadline=None, max_examples=40)
@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 3), st.integers(0, 40))
def test_equal_advantages_become_zero(level, value, rows, time):
    advantage = torch.full((rows, time), value)
    white, _, std = whiten(advantage, torch.ones(rows, time, dtype=torch.bool), level, torch.zeros(rows).long())
    assert (white == 0).all()
    assert float(std) <= 1e-8 * abs(value)


@pytest.mark.parametrize("level", ["sample", "group", "batch"])
def test_edges_have_no_nan(level):
    one = torch.tensor([[7.0, 1.0], [3.0, 1.0]])
    for mask in (torch.zeros(2, 2, dtype=torch.bool), torch.tensor([[True, False], [False, False]])):
        white, mean, std = whiten(one, mask, level, torch.tensor([0, 1]))
        assert (white == 0).all()
        assert torch.isfinite(torch.stack([mean, std])).all()
    white, _, _ = whiten(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool), level, torch.zeros(0).long())
    assert white.shape == (0, 3)


@pytest.mark.parametrize("level", ["sample", "group", "batch"])
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-10, 10))
def test_scale_and_offset_vanish(level, seed, scale, offset):
    generator = torch.Generator().manual_seed(seed)
    advantage = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=generator) > 0.2
    plain, _, _ = whiten(advantage, mask, level, GROUP)
    moved, _, _ = whiten(advantage * scale + offset, mask, level, GROUP)
    torch.testing.assert_close(plain, moved, rtol=1e-6, atol=1e-6)


def test_batch_level_is_global_over_ranks():
    """Two ranks, each with half of the batch, whiten as one: the sums are what they exchange."""
    whole, mean, std = whiten(ADVANTAGE, MASK, "batch", GROUP)
    halves = [slice(0, 2), slice(2, 4)]
    sums = [[], []]
    for half, recorded in zip(halves, sums, strict=True):  # three exchanges: count, sum, sum of squares around the mean
        x, m = ADVANTAGE[half].double(), MASK[half]
        recorded += [m.sum(), torch.where(m, x, 0).sum()]
    exchanged = iter([sum(float(rank[0]) for rank in sums), sum(float(rank[1]) for rank in sums)])
    total_mean = sum(float(rank[1]) for rank in sums) / sum(float(rank[0]) for rank in sums)

    squares = [torch.where(MASK, (ADVANTAGE - total_mean) ** 2, 0).sum(), torch.where(MASK, ADVANTAGE**2, 0).sum()]

    def all_reduce(total):
        number = next(exchanged, None)
        return torch.full_like(total, float(squares.pop(0)) if number is None else number)

    first, first_mean, first_std = whiten(ADVANTAGE[halves[0]], MASK[halves[0]], "batch", GROUP[halves[0]], all_reduce)
    torch.testing.assert_close(first, whole[halves[0]], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.stack([first_mean, first_std]), torch.stack([mean, std]), rtol=1e-6, atol=1e-6)
