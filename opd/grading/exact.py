"""Grading by the text alone, for answers that are not mathematics."""

from collections.abc import Sequence

from opd.grading.answer import LONGEST_ANSWER, TAIL
from opd.grading.grading import Grade

MARK = "####"


def grade_exactly(predictions: Sequence[str], golds: Sequence[str], *, timeout: float) -> list[Grade]:
    """Whether each response's answer is its gold, character by character but for spaces around it.

    The answer is what follows the last "####" on its line, or without one the last line that is not empty; it is looked
    for in the last `TAIL` characters and has at most `LONGEST_ANSWER`. Takes time linear in those, so no `timeout`.
    """
    return [_grade(_answer(prediction), gold.strip()) for prediction, gold in zip(predictions, golds, strict=True)]


def _answer(response: str) -> str:
    lines = response[-TAIL:].strip().splitlines()
    marked = [line for line in lines if MARK in line]
    return marked[-1].rpartition(MARK)[2].strip() if marked else lines[-1].strip() if lines else ""


def _grade(answer: str, gold: str) -> Grade:
    if not answer or len(answer) > LONGEST_ANSWER:
        return Grade(False, None, "no answer")
    return Grade(answer == gold, answer, "equal" if answer == gold else "different")
