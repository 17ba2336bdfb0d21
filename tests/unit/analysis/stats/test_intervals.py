"""Student's t over variance components, against scipy where scipy has it, analysis of variance where it has not."""

import numpy as np
import pytest
import scipy.stats

from analysis.stats.intervals import Estimate, block, estimate


def of(*sides: np.ndarray) -> Estimate:
    """The estimate of one metric on one benchmark; sides are "seed problem" and signed."""
    return estimate([block([side[None] for side in sides])])


@pytest.mark.parametrize("size", [2, 30, 200])
def test_one_seed_is_scipys_t_interval_and_test(size: int):
    scores = np.random.default_rng(size).normal(0.1, 1, size)
    found, theirs = of(scores[None]), scipy.stats.ttest_1samp(scores, 0)
    np.testing.assert_allclose(found.interval(0.9)[:, 0], theirs.confidence_interval(0.9), rtol=1e-4)
    assert found.p_two_sided()[0] == pytest.approx(theirs.pvalue, rel=1e-4)
    assert found.p_above(0)[0] == pytest.approx(
        scipy.stats.ttest_1samp(scores, 0, alternative="greater").pvalue, rel=1e-4
    )
    assert found.p_below(0)[0] == pytest.approx(scipy.stats.ttest_1samp(scores, 0, alternative="less").pvalue, rel=1e-4)


def test_a_paired_difference_of_one_seed_is_scipys_paired_test():
    ours, theirs = np.random.default_rng(0).random((2, 40))
    assert of(ours[None] - theirs[None]).p_two_sided()[0] == pytest.approx(
        scipy.stats.ttest_rel(ours, theirs).pvalue, 1e-4
    )


def test_the_error_is_that_of_the_analysis_of_variance():
    """Mean squares of a 3 x 4 table, worked out from the sums of squares of a textbook."""
    table = np.array([[4.0, 6, 5, 9], [5, 9, 4, 10], [9, 9, 8, 14]])
    grand = table.mean()
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    of_seeds = 4 * ((rows - grand) ** 2).sum() / 2
    of_problems = 3 * ((columns - grand) ** 2).sum() / 3
    of_rest = (((table - grand) ** 2).sum() - 2 * of_seeds - 3 * of_problems) / 6
    found = of(table)
    assert found.value[0] == pytest.approx(grand)
    assert found.error[0] ** 2 == pytest.approx((of_seeds + of_problems - of_rest) / 12)
    assert found.between_seeds[0] == pytest.approx(of_seeds / 12)
    assert found.between_problems[0] == pytest.approx((of_problems - of_rest) / 12)


def test_seeds_that_agree_have_the_error_of_one_seed():
    scores = np.random.default_rng(0).random((1, 60))
    np.testing.assert_allclose(of(np.repeat(scores, 5, axis=0)).error, of(scores).error, rtol=1e-9)


def test_problems_that_agree_leave_the_seeds_t_interval():
    seeds = np.random.default_rng(0).random(4)
    found = of(np.repeat(seeds[:, None], 200, axis=1))
    np.testing.assert_allclose(
        found.interval(0.95)[:, 0], scipy.stats.ttest_1samp(seeds, 0).confidence_interval(0.95), rtol=1e-4
    )


@pytest.mark.parametrize("spread", [0.0, 0.1, 5.0])
def test_the_degrees_of_freedom_are_those_of_the_seeds(spread: float):
    rng = np.random.default_rng(0)
    found = of(rng.normal(0, spread, (3, 1)) + rng.normal(0, 1, 30) + rng.normal(0, 1e-3, (3, 30)))
    assert found.df[0] == pytest.approx(2)
    reach = scipy.stats.t(2).ppf(0.995) * found.error[0]
    assert found.interval(0.99)[1, 0] - found.value[0] == pytest.approx(reach)


def test_unpaired_sides_have_the_degrees_of_freedom_of_welchs_test():
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0, 0.3, 4), rng.normal(0, 0.1, 6)
    found = of(np.repeat(ours[:, None], 50, axis=1), -np.repeat(theirs[:, None], 50, axis=1))
    welch = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
    assert found.df[0] == pytest.approx(welch.df) and found.p_two_sided()[0] == pytest.approx(welch.pvalue)


def test_two_seeds_that_agree_do_not_take_the_degrees_of_freedom_of_a_side_with_many():
    """Welch's formula would give 59: it takes the side of the two for exact. Of equal spreads it gives 1.07."""
    theirs = np.random.default_rng(0).normal(0, 0.3, 60)
    found = of(np.repeat([[0.1], [0.1 + 1e-6]], 50, axis=1), -np.repeat(theirs[:, None], 50, axis=1))
    assert found.df[0] == pytest.approx((1 / 2 + 1 / 60) ** 2 / ((1 / 2) ** 2 + (1 / 60) ** 2 / 59))


def test_unpaired_sides_add_their_seeds_variances_and_share_their_problems():
    rng = np.random.default_rng(0)
    hard = rng.random(50)
    ours, theirs = (rng.normal(0, 0.2, (seeds, 1)) + hard for seeds in (3, 5))
    found = of(ours, -theirs)
    expected = ours.mean(axis=1).var(ddof=1) / 3 + theirs.mean(axis=1).var(ddof=1) / 5
    assert found.error[0] ** 2 == pytest.approx(expected)  # what the problems have in common is gone
    assert found.value[0] == pytest.approx(ours.mean() - theirs.mean())


def test_benchmarks_have_equal_weight_and_their_problems_are_independent():
    rng = np.random.default_rng(0)
    small, large = rng.random((1, 30)), rng.random((1, 300)) + 1
    found = estimate([block([small[None]]), block([large[None]])])
    assert found.value[0] == pytest.approx((small.mean() + large.mean()) / 2)
    expected = (scipy.stats.sem(small[0]) ** 2 + scipy.stats.sem(large[0]) ** 2) / 4
    assert found.error[0] ** 2 == pytest.approx(expected)


def test_metrics_are_apart_and_a_missing_one_is_missing():
    scores = np.random.default_rng(0).random((2, 3, 20))
    both = estimate([block([scores])])
    np.testing.assert_allclose(both.interval(0.95)[:, 1], of(scores[1]).interval(0.95)[:, 0])
    missing = estimate([block([np.stack([scores[0] * np.nan, scores[1]])])])
    assert np.isnan(missing.interval(0.95)[:, 0]).all()
    np.testing.assert_allclose(missing.interval(0.95)[:, 1], both.interval(0.95)[:, 1])
    np.testing.assert_allclose(both.one(1).interval(0.95), both.interval(0.95)[:, 1:])


def test_one_problem_has_no_error_and_no_variation_no_doubt():
    assert np.isnan(of(np.array([[0.5], [0.7]])).error[0])
    sure = of(np.full((2, 30), 0.25))
    assert (sure.interval(0.95)[:, 0] == 0.25).all()
    assert (sure.p_above(0.25)[0], sure.p_above(0)[0], sure.p_below(0)[0]) == (0.5, 0, 1)


@pytest.mark.parametrize(("seeds", "problems"), [(1, 60), (3, 30), (5, 200)])
def test_a_share_that_is_all_right_has_the_exact_interval(seeds: int, problems: int):
    exact = scipy.stats.binomtest(problems, problems).proportion_ci(0.9)
    found = of(np.ones((seeds, problems)))
    np.testing.assert_allclose(found.interval(0.9, shares=True)[0], exact.low)
    assert (found.interval(0.9)[:, 0] == 1).all()
    varied = of(np.random.default_rng(0).random((seeds, problems)))
    np.testing.assert_array_equal(varied.interval(0.9, shares=True), varied.interval(0.9))


def simulated(seeds: int, problems: int, spread: float, trials: int) -> np.ndarray:
    """Differences of two arms with no true difference: chances that vary with problem and seed, 8 answers each."""
    rng = np.random.default_rng(7)
    hard = rng.normal(0, 1.5, (trials, 1, problems))

    def side() -> np.ndarray:
        chance = 1 / (1 + np.exp(hard + rng.normal(0, spread, (trials, seeds, 1))))
        return rng.binomial(8, chance) / 8

    return side() - side()


@pytest.mark.parametrize(("seeds", "problems", "spread"), [(1, 30, 0.0), (3, 50, 0.2), (5, 30, 0.02), (5, 200, 0.5)])
def test_the_interval_covers_the_truth_and_is_not_needlessly_wide(seeds: int, problems: int, spread: float):
    """The trials are the metrics of one estimate: 1,000 of them, each right 95 times in 100, give or take 2."""
    trials = simulated(seeds, problems, spread, 1000)
    low, high = estimate([block([trials])]).interval(0.95)
    assert 0.93 <= ((low <= 0) & (high >= 0)).mean() <= (0.99 if problems >= 200 else 1)
