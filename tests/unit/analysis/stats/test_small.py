"""Both best@k, and the intervals of one run on few problems."""

import numpy as np
import pytest
import scipy.stats

from analysis.stats.small import beta_binomial_interval, clopper_pearson
from opd.grading.scores import best_at_k, best_at_k_resampled, mean_at_k


def test_two_of_eight_answers_worked_by_hand():
    """best@8 = 1; resampled 1 - (6/8)^8; mean@8 = 2/8."""
    given = [True, False, False, True, False, False, False, False]
    assert (best_at_k(given), mean_at_k(given)) == (1, 0.25)
    assert best_at_k_resampled(given) == pytest.approx(1 - 0.75**8)


@pytest.mark.parametrize("right", [0, 1, 7, 29, 30])
def test_the_exact_interval_is_scipys(right: int):
    theirs = scipy.stats.binomtest(right, 30).proportion_ci(0.95, "exact")
    assert clopper_pearson(right, 30, level=0.95) == pytest.approx((theirs.low, theirs.high))


def test_with_one_answer_a_problem_the_bayesian_interval_is_jeffreys():
    """Answers of k = 1 have no correlation to learn: 7 of 30 right is Beta(7.5, 23.5)."""
    right = np.array([1] * 7 + [0] * 23)
    expected = scipy.stats.beta(7.5, 23.5).ppf([0.025, 0.975])
    np.testing.assert_allclose(beta_binomial_interval(right, 1, level=0.95), expected, atol=0.002)


def test_problems_all_alike_or_all_apart_bound_the_bayesian_interval():
    """30 problems of which all are half right know almost as much as 240 answers; all or nothing, as 30."""
    alike = np.subtract(*beta_binomial_interval(np.full(30, 4), 8, level=0.95)[::-1])
    apart = np.subtract(*beta_binomial_interval(np.array([0, 8] * 15), 8, level=0.95)[::-1])
    by_answers, by_problems = (np.subtract(*scipy.stats.beta(n / 2, n / 2).ppf([0.975, 0.025])) for n in (240, 30))
    assert alike == pytest.approx(by_answers, rel=0.1) and apart == pytest.approx(by_problems, rel=0.1)


def test_nothing_right_is_not_sure_to_be_zero():
    low, high = beta_binomial_interval(np.zeros(30, dtype=int), 8, level=0.95)
    assert low == 0 and 0.01 < high < 0.15


def test_the_bayesian_interval_covers_the_truth_where_hardly_any_problem_is_solved():
    rng = np.random.default_rng(0)
    chance = scipy.stats.beta(0.2, 3.8)  # mean 0.05
    hits = 0
    for _ in range(300):
        low, high = beta_binomial_interval(rng.binomial(8, chance.rvs(30, random_state=rng)), 8, level=0.95)
        hits += low <= 0.05 <= high
    assert hits / 300 > 0.92
