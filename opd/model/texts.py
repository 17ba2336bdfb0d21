"""How a model reads and ends texts: vocabulary, stop tokens, chat template; student and teacher compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from opd.errors import UserError
from opd.model.load import load_ends, token_ids


@dataclass(frozen=True)
class Reading:
    """A model's tokenizer, and the ids that end a text of it. `key` is the config key that names the model."""

    key: str
    model: str
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]

    def named(self, ids: Sequence[int]) -> list[str]:
        """The tokens of these ids."""
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(ids))]

    @property
    def special(self) -> dict[str, Any]:
        """Its special tokens, by their roles."""
        return dict(self.tokenizer.special_tokens_map)


@dataclass(frozen=True)
class Texts:
    """The student's tokenizer, and the config keys of the models whose vocabularies are known to be its own."""

    tokenizer: PreTrainedTokenizerBase
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
    """The reading of the model at `path`, whose tokenizer this is, shown as `model`; `stop_tokens` end its texts, null:
    those of its own config.

    Raises:
        UserError: where the tokenizer has no such token.
    """
    own: Any = tokenizer.eos_token_id
    more = load_ends(path, revision=revision) if stop_tokens is None else token_ids(tokenizer, stop_tokens)
    return Reading(key, model, tokenizer, tuple(sorted({own, *more})))


def end_alike(student: Reading, teacher: Reading, *, explicit: bool) -> list[str]:
    """Whether the student stops wherever this teacher ends a text: it learns to write that token, and would go on.

    Raises:
        UserError: where it does not, unless its stop tokens were given, `explicit`; that is a warning.
    """
    missing = sorted(set(teacher.ends) - set(student.ends))
    if not missing:
        return []
    wanted = ",".join(f"'{token}'" for token in student.named(sorted({*student.ends, *missing})))
    said = (
        f"student.stop_tokens: {teacher.key}={teacher.model!r} ends a text with {_listed(teacher, missing)}, at which "
        f"the student, who stops at {_listed(student, student.ends)}, would go on to the length limit"
    )
    if not explicit:
        raise UserError(f'{said}; set "student.stop_tokens=[{wanted}]"')
    return [said]


def _listed(reading: Reading, ids: Sequence[int]) -> str:
    return " and ".join(f"{token} ({index})" for token, index in zip(reading.named(ids), ids, strict=True))


def rendered(tokenizer: PreTrainedTokenizerBase, system: str | None, text: str) -> str | None:
    """A user's turn as the tokenizer's chat template shows it to the model; None without one, or where it refuses."""
    if tokenizer.chat_template is None:
        return None
    turns = [*([] if system is None else [{"role": "system", "content": system}]), {"role": "user", "content": text}]
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    except Exception:  # a template is a program of its own
        return None
