import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from opd.grading.scores import best_at_k, best_at_k_resampled, maj_at_k, mean_at_k

ANSWERS = st.lists(st.booleans(), min_size=1, max_size=16)


def right(count: int, k: int = 8) -> list[bool]:
    return [True] * count + [False] * (k - count)


@pytest.mark.parametrize(
    ("count", "mean", "best", "resampled"),
    [(0, 0, 0, 0), (1, 0.125, 1, 0.65639), (2, 0.25, 1, 0.89989), (4, 0.5, 1, 0.99609), (8, 1, 1, 1)],
)
def test_scores_of_eight_answers_by_hand(count, mean, best, resampled):
    assert mean_at_k(right(count)) == mean
    assert best_at_k(right(count)) == best
    assert best_at_k_resampled(right(count)) == pytest.approx(resampled, abs=1e-5)


def test_resampled_best_is_the_mean_best_of_draws_with_replacement():
    rng = np.random.default_rng(0)
    answers = np.array(right(2, k=5))
    drawn = answers[rng.integers(5, size=(200_000, 5))].any(axis=1).mean()
    assert best_at_k_resampled(answers.tolist()) == pytest.approx(drawn, abs=0.005)


@given(ANSWERS)
def test_mean_is_at_most_resampled_best_which_is_at_most_best(answers):
    mean, resampled, best = mean_at_k(answers), best_at_k_resampled(answers), best_at_k(answers)
    assert 0 <= mean <= resampled + 1e-12
    assert resampled <= best <= 1


@given(ANSWERS, st.randoms())
def test_order_of_answers_does_not_matter(answers, random):
    shuffled = random.sample(answers, len(answers))
    for score in (mean_at_k, best_at_k, best_at_k_resampled):
        assert score(shuffled) == score(answers)


@pytest.mark.parametrize(
    ("answers", "correct", "score"),
    [
        (["4", "4", "5"], [True, True, False], 1),
        (["5", "4", "5"], [False, True, False], 0),
        (["5", "4", "4"], [False, True, True], 1),
        (["4", "5"], [True, False], 1),  # a tie goes to the answer that came first
        (["5", "4"], [False, True], 0),
        ([None, None, "4"], [False, False, True], 1),  # no answer, no vote
        ([None, None], [False, False], 0),
        (["4", "5", "5", "4", "4"], [True, False, False, True, True], 1),
    ],
)
def test_majority_by_hand(answers, correct, score):
    assert maj_at_k(answers, correct) == score


def test_majority_wants_a_verdict_for_each_answer():
    with pytest.raises(ValueError):
        maj_at_k(["4"], [True, False])


def test_no_answer_is_missing_not_zero():
    assert all(math.isnan(score([])) for score in (mean_at_k, best_at_k, best_at_k_resampled))
    assert math.isnan(maj_at_k([], []))
