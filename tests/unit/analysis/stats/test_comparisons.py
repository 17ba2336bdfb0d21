"""Probability of improvement, interquartile mean, ranks, power and stability, each by hand or by simulation."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, strategies as st

from analysis.stats.comparisons import interquartile_mean, probability_of_improvement, ranks
from analysis.stats.curves import collapsed, drift, drop_from_best, spikes
from analysis.stats.intervals import block, estimate
from analysis.stats.power import seeds_needed

NAN = np.nan


def test_probability_of_improvement_by_hand():
    """Task 1: 3 > 2, 3 > 1, 2 = 2, 2 > 1: 3.5 of 4. Task 2: none of 4."""
    ours, theirs = np.array([[3.0, 0.0], [2.0, 0.0]]), np.array([[2.0, 1.0], [1.0, 1.0]])
    assert probability_of_improvement(ours, theirs) == 3.5 / 8
    assert probability_of_improvement(ours, ours) == 0.5 * (0.5 + 0.5)


def test_probability_of_improvement_is_mann_whitneys_u():
    ours, theirs = np.random.default_rng(0).integers(0, 6, (2, 9)).astype(float)
    u = scipy.stats.mannwhitneyu(ours, theirs).statistic
    assert probability_of_improvement(ours[:, None], theirs[:, None]) == pytest.approx(u / 81)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 40])
def test_interquartile_mean_is_scipys_trimmed_mean(size: int):
    scores = np.random.default_rng(size).random((size, 2))
    assert interquartile_mean(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None))


def test_ranks_by_hand():
    draws = np.array([[1.0, 3, 2], [1, 2, 3], [5, 5, 1], [0, 2, 1]])
    found = ranks(np.array([1.0, 3, 3]), draws, level=0.95)
    assert list(found.rank) == [3, 1, 1]
    assert list(found.best) == [0.5 / 4, 2.5 / 4, 1 / 4]
    assert list(found.low) == [1, 1, 1] and list(found.high) == [3, 2, 3]


def power_of(seeds: int, difference: float, trials: int = 4000) -> float:
    """How often a true difference is found with this many seeds, on 100 problems."""
    rng = np.random.default_rng(0)
    scores = (
        difference + rng.normal(0, 0.02, (trials, seeds, 1)) + rng.normal(0, 0.05, (trials, 1, 100))
        + rng.normal(0, 0.1, (trials, seeds, 100))
    )  # fmt: skip
    return float((estimate([block([scores])]).interval(0.95)[0] > 0).mean())


def needed(difference: float, **changes) -> int | None:
    design = {
        "between_seeds": 0.02**2 / 3 + 0.1**2 / 300, "between_problems": 0.05**2 / 100, "seeds": 3, "df": 2.0,
        "alpha": 0.05, "power": 0.8,
    }  # fmt: skip
    return seeds_needed(difference, **{**design, **changes})


@pytest.mark.parametrize("difference", [0.03, 0.04])
def test_so_many_seeds_find_the_difference_as_often_as_asked(difference: float):
    seeds = needed(difference)
    assert seeds and seeds < 20
    assert 0.74 < power_of(seeds, difference) < 0.92
    assert power_of(seeds - 1, difference) < 0.8


def test_more_seeds_are_needed_for_less_surer_and_stricter():
    usual = needed(0.03)
    assert needed(0.02) > usual < needed(0.03, power=0.95) and usual < needed(0.03, alpha=0.005)
    assert needed(-0.03) == usual and needed(0.03, df=4.0) <= usual


def seeds_by_definition(difference: float, df: float) -> int:
    """The design of `needed`, whose three seeds have `df` degrees of freedom: 2 of one side, up to 4 of two."""
    for seeds in range(2, 1000):
        along, across = (0.02**2 / 3 + 0.1**2 / 300) * 3 / seeds, 0.05**2 / 100
        reach = sum(scipy.stats.t(df / 2 * (seeds - 1)).ppf(p) for p in (0.975, 0.8))
        if difference >= reach * (along + across) ** 0.5:
            return seeds
    raise AssertionError


@pytest.mark.parametrize("difference", [0.025, 0.03, 0.04, 0.06])
def test_degrees_of_freedom_grow_with_the_seeds(difference: float):
    one, two = (seeds_by_definition(difference, df) for df in (2.0, 4.0))
    assert one > two
    assert needed(difference) == one and needed(difference, df=4.0) == two


def test_no_number_of_seeds_makes_up_for_few_problems_or_finds_nothing():
    assert needed(0.01) is None  # 100 problems leave an error of 0.005
    assert needed(0.0) is None


def test_a_run_collapsed_when_its_last_score_is_a_small_part_of_its_best():
    assert collapsed(np.array([0.1, 0.6, NAN, 0.2]), kept=0.5) and not collapsed(np.array([0.1, 0.6, 0.4]), kept=0.5)
    assert not collapsed(np.array([0.1, 0.1]), kept=0.5) and not collapsed(np.array([NAN]), kept=0.5)
    assert (
        drop_from_best(np.array([0.1, 0.6, NAN, 0.2])) == pytest.approx(0.4)
        and drop_from_best(np.array([0.1, 0.2])) == 0
    )
    assert np.isnan(drop_from_best(np.array([NAN])))


def test_a_spike_stands_out_of_what_was_before_it():
    norms = np.array([1.0, 1.2, 0.8, 1.0, 1.1, 9.0, 1.0, 9.0, 1.0])
    assert spikes(norms, window=4, times=5) == 2
    assert spikes(norms, window=4, times=20) == 0
    assert spikes(np.array([1.0, 9.0]), window=4, times=5) == 0  # one value before it is too few
    assert spikes(np.array([1.0, 1.0, NAN, 9.0]), window=4, times=5) == 1


@given(st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 4.0, NAN]), max_size=30), st.integers(1, 12), st.integers(1, 3))
def test_spikes_are_those_of_their_definition(given_norms, window, times):
    norms = np.array(given_norms, dtype=float)
    known = norms[~np.isnan(norms)]
    expected = [
        known[at] > times * np.median(known[max(0, at - window) : at])
        for at in range(len(known))
        if at >= max(1, window // 2)
    ]
    assert spikes(norms, window=window, times=times) == sum(expected)


def test_drift_is_the_last_part_against_the_one_before():
    assert drift(np.array([9.0] * 16 + [1, 3, NAN, 5, 7]), share=0.1) == pytest.approx(6 - 2)
    assert drift(np.array([2.0, 1.0]), share=0.1) == -1 and np.isnan(drift(np.array([1.0]), share=0.1))
