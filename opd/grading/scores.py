"""Scores of k graded answers to one problem, each in [0, 1]."""

import math
from collections.abc import Sequence


def mean_at_k(correct: Sequence[bool]) -> float:
    """mean@k = c / k, the share of the k answers that are correct; NaN without answers."""
    return sum(correct) / len(correct) if correct else math.nan


def best_at_k(correct: Sequence[bool]) -> float:
    """best@k = 1 where any of the k answers is correct, else 0; NaN without answers."""
    return float(any(correct)) if correct else math.nan


def best_at_k_resampled(correct: Sequence[bool]) -> float:
    """Expected best of k draws with replacement from the k answers, 1 - (1 - c/k)^k.

    This is what veRL reports as best@k (`verl/trainer/ppo/metric_utils.py`): one correct answer of eight gives 0.656,
    not 1. NaN without answers.
    """
    return 1 - (1 - mean_at_k(correct)) ** len(correct) if correct else math.nan


def maj_at_k(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """maj@k = 1 where the most frequent extracted answer is correct, else 0; ties go to the first of them.

    Responses without an extracted answer (None) do not vote; without votes the score is 0. NaN without answers.

    Raises:
        ValueError: where `answers` and `correct` differ in length.
    """
    votes: dict[str, int] = {}
    verdict: dict[str, bool] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
            verdict.setdefault(answer, right)
    if not correct:
        return math.nan
    return float(verdict[max(votes, key=votes.__getitem__)]) if votes else 0.0
