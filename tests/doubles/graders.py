"""Graders that say what a test asks them to."""

import time
from typing import Any

from opd.grading.grading import Grade


def half(problem: Any, response: str, *, worth: float) -> Grade:
    """Some of a response is right where it holds the answer."""
    there = problem.answer in response
    return Grade(there and worth == 1, response[:3], "said", worth if there else 0.0)


def hostile(problem: Any, response: str) -> Any:
    """Does what the response says."""
    if response == "hang":
        time.sleep(60)
    if response == "raise":
        raise RuntimeError("broken")
    if response == "lie":
        return Grade(True, "x", "fine", 7.0)
    return Grade(True, response, "fine")
