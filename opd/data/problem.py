"""One problem, and the split that it belongs to."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from opd.grading.grader import MATHEMATICS

Split = Literal["train", "test"]

ANSWER_MARK = "#### "

# One problem in this many is held out for evaluation.
_HELD_OUT = 8


# Roles and contents of a conversation.
Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Problem:
    """`problem` is the text that a model continues, or answers after the turns before it; `answer` the one right
    answer, empty where it is not known.
    """

    id: str
    problem: str
    answer: str
    domain: str
    grader: str = MATHEMATICS
    earlier: Turns = ()


def split_of(key: str) -> Split:
    """The split of a generated problem, by SHA-256 of what identifies it: one in eight is for evaluation."""
    return "test" if hashlib.sha256(key.encode()).digest()[0] % _HELD_OUT == 0 else "train"
