import numpy as np
import pytest
import scipy.stats

from analysis.stats.bootstrap import resampled_means, resampling_weights


def interval(scores: np.ndarray, *, count: int, seed: int = 0, fewer: int = 0) -> np.ndarray:
    """The 95 % interval of the mean of "seed problem" scores."""
    rng = np.random.default_rng(seed)
    seeds, problems = (
        resampling_weights(size, drawn=max(1, size - fewer), count=count, rng=rng) for size in scores.shape
    )
    return np.quantile(resampled_means(scores[None], seeds=seeds, problems=problems)[:, 0], [0.025, 0.975])


def test_weights_are_whole_draws_and_every_thing_is_drawn_alike():
    weights = resampling_weights(7, drawn=7, count=20_000, rng=np.random.default_rng(0))
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights * 7, np.round(weights * 7), atol=1e-12)
    np.testing.assert_allclose(weights.mean(axis=0), 1 / 7, atol=0.002)
    np.testing.assert_allclose((weights * 7).var(axis=0), 6 / 7, atol=0.03)  # binomial(7, 1/7)


@pytest.mark.parametrize("size", [2, 3, 30])
def test_one_fewer_draw_makes_the_variance_unbiased(size: int):
    values = np.random.default_rng(size).random(size)
    weights = resampling_weights(size, drawn=size - 1, count=100_000, rng=np.random.default_rng(0))
    assert (weights @ values).var() == pytest.approx(scipy.stats.sem(values) ** 2, rel=0.03)


def test_resampled_mean_is_the_mean_of_drawn_seeds_on_drawn_problems():
    values = np.random.default_rng(0).random((2, 3, 4))
    drawn_seeds, drawn_problems = [0, 2, 2], [1, 1, 3, 0]
    means = resampled_means(
        values,
        seeds=np.bincount(drawn_seeds, minlength=3)[None] / 3,
        problems=np.bincount(drawn_problems, minlength=4)[None] / 4,
    )
    for metric in range(2):
        by_hand = np.mean([[values[metric, seed, problem] for problem in drawn_problems] for seed in drawn_seeds])
        assert means[0, metric] == pytest.approx(by_hand)


def test_missing_metric_stays_apart_from_the_others():
    values = np.array([[[np.nan, np.nan]], [[0.0, 1.0]]])
    means = resampled_means(values, seeds=np.ones((5, 1)), problems=np.full((5, 2), 0.5))
    assert np.isnan(means[:, 0]).all()
    assert (means[:, 1] == 0.5).all()


def test_two_problems_have_the_distribution_that_can_be_counted():
    """Of two problems, one right: the mean of two draws is 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    weights = resampling_weights(2, drawn=2, count=40_000, rng=np.random.default_rng(0))
    means = resampled_means(np.array([[[0.0, 1.0]]]), seeds=np.ones((40_000, 1)), problems=weights)[:, 0]
    values, counts = np.unique(means, return_counts=True)
    assert list(values) == [0, 0.5, 1]
    np.testing.assert_allclose(counts / 40_000, [0.25, 0.5, 0.25], atol=0.01)


@pytest.mark.parametrize("size", [30, 200])
def test_interval_over_problems_is_scipys(size):
    scores = np.random.default_rng(size).binomial(8, 0.4, size) / 8
    theirs = scipy.stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    np.testing.assert_allclose(interval(scores[None], count=20_000), [theirs.low, theirs.high], atol=1 / 8 / size)


def test_same_seed_same_interval_and_another_seed_another():
    scores = np.random.default_rng(0).random((2, 50))
    assert (interval(scores, count=500) == interval(scores, count=500)).all()
    assert (interval(scores, count=500, seed=1) != interval(scores, count=500)).any()


def test_shared_problems_do_not_average_out_over_seeds():
    """Ten seeds that agree on every problem know no more of the problems than one seed."""
    one = np.random.default_rng(0).random((1, 60))
    low, high = interval(one, count=4000)
    low_ten, high_ten = interval(np.repeat(one, 10, axis=0), count=4000)
    assert high_ten - low_ten == pytest.approx(high - low, rel=0.05)
