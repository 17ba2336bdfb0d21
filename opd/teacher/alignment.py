"""How a teacher's tokens are aligned with the student's: the choices of `alignment`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True)
class Spans:
    """A response cut into pieces that begin and end alike in both tokenizations.

    Piece i is student tokens [student[i], student[i + 1]) and teacher tokens [teacher[i], teacher[i + 1]), the same
    bytes. `aligned[i]` is False where the two cannot be compared; such tokens get no signal.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    aligned: tuple[bool, ...]


@runtime_checkable
class Alignment(Protocol):
    """Student and teacher tokens of the same text."""

    same_vocabulary: bool  # teachers must have the student's vocabulary

    def __call__(
        self, response_ids: Sequence[int], student_tokenizer: Tokenizer, teacher_tokenizer: Tokenizer
    ) -> Spans:
        """The pieces of a response, given as the student's token ids."""
        ...


class Identity:
    """Each token on itself."""

    same_vocabulary = True

    def __call__(
        self, response_ids: Sequence[int], student_tokenizer: Tokenizer, teacher_tokenizer: Tokenizer
    ) -> Spans:
        borders = tuple(range(len(response_ids) + 1))
        return Spans(borders, borders, (True,) * len(response_ids))


def identity() -> Alignment:
    """Student and teacher share a vocabulary, which is checked: each token lies on itself."""
    return Identity()
