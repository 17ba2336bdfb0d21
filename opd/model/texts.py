"""A model's vocabulary, end-of-text tokens and chat template, and the comparison of student and teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from opd.data.environment import Message
from opd.data.template import render
from opd.errors import UserError
from opd.model.load import load_ends, token_ids


@dataclass(frozen=True)
class Reading:
    """A model's tokenizer, and the ids that end its texts. `key` is the config key that names the model."""

    key: str
    model: str
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]

    def named(self, ids: Sequence[int]) -> list[str]:
        """The tokens with these ids."""
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(ids))]

    @property
    def special(self) -> dict[str, Any]:
        """The special tokens, by role."""
        return dict(self.tokenizer.special_tokens_map)


@dataclass(frozen=True)
class Texts:
    """The student's tokenizer, the ids that all models of the run have (those below `vocab_size`), and the config keys
    of the models whose vocabularies were found to be the same.
    """

    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    alike: frozenset[str]


def read(
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    *,
    revision: str | None,
    key: str,
    model: str,
    stop_tokens: Sequence[str] | None,
) -> Reading:
    """The `Reading` of the model at `path`, which the user called `model`; its texts end with `stop_tokens`, or with
    those of its own config if None.

    Raises:
        UserError: for a stop token that the tokenizer does not have.
    """
    own: Any = tokenizer.eos_token_id
    more = load_ends(path, revision=revision) if stop_tokens is None else token_ids(tokenizer, stop_tokens)
    return Reading(key, model, tokenizer, tuple(sorted({own, *more})))


def end_alike(student: Reading, teacher: Reading, *, explicit: bool) -> list[str]:
    """Checks that the student stops at every token that ends a text of this teacher: it learns to write that token, and
    would not stop there. Returns a warning if it does not and its stop tokens are `explicit`.

    Raises:
        UserError: where it does not and they are not.
    """
    missing = sorted(set(teacher.ends) - set(student.ends))
    if not missing:
        return []
    wanted = ",".join(f"'{token}'" for token in student.named(sorted({*student.ends, *missing})))
    problem = (
        f"student.stop_tokens: {teacher.key}={teacher.model!r} ends a text with {_listed(teacher, missing)}, but the "
        f"student stops only at {_listed(student, student.ends)} and would go on to the length limit"
    )
    if not explicit:
        raise UserError(f'{problem}; set "student.stop_tokens=[{wanted}]"')
    return [problem]


def _listed(reading: Reading, ids: Sequence[int]) -> str:
    return " and ".join(f"{token} ({index})" for token, index in zip(reading.named(ids), ids, strict=True))


def rendered(tokenizer: PreTrainedTokenizerBase, system: str | None, text: str) -> str | None:
    """A user's turn as the tokenizer's chat template renders it; None without a template, or where it fails."""
    before: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    try:
        turns: list[Message] = [*before, {"role": "user", "content": text}]
        return render(tokenizer, [turns], key="prompts.template", date=None)[0]
    except UserError:
        return None
