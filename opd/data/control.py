"""Control tokens: a few tokens before a prompt that tell the student which teacher will score it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from opd.data.batch import Prompt, Rollout, pad
from opd.errors import UserError
from opd.objective.mixture import Prefixes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Control:
    """The tokens of each teacher (empty for most ensembles), whether teachers see them, and those for evaluation."""

    tokens: tuple[tuple[int, ...], ...]
    teacher_sees: bool
    at_evaluation: tuple[int, ...]

    @property
    def longest(self) -> int:
        return max(map(len, self.tokens))

    def for_student(self, prompts: Sequence[Prompt], routed: Sequence[int] | None) -> Sequence[Prompt]:
        """The prompts with the tokens of their teachers; `routed` is each one's teacher."""
        if routed is None or not self.longest:
            return prompts
        return [_after(self.tokens[teacher], prompt) for prompt, teacher in zip(prompts, routed, strict=True)]

    def for_evaluation(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """A benchmark's prompts with the tokens for evaluation."""
        return [_after(self.at_evaluation, prompt) for prompt in prompts]

    def for_teachers(self, rollout: Rollout, prompts: Sequence[Prompt]) -> Rollout:
        """The rollout for the teachers: with the plain prompts, unless teachers see the tokens."""
        if self.teacher_sees or not self.longest:
            return rollout
        rows = [list(prompts[index].token_ids) for index in rollout.group.tolist()]
        prompt, prompt_mask = pad(rows, 0, "left")
        return replace(rollout, prompt=prompt, prompt_mask=prompt_mask)


def encode(prefixes: Prefixes, tokenizer: "PreTrainedTokenizerBase") -> Control:
    """Tokenise the texts.

    Raises:
        UserError: where the tokenizer cannot distinguish two teachers, or does not know a text.
    """

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    encoded = tuple(tokens(text) for text in prefixes.texts)
    named = [text for text in prefixes.texts if text]
    for text, ids in zip(prefixes.texts, encoded, strict=True):
        if text and (not ids or tokenizer.unk_token_id in ids or encoded.count(ids) > 1):
            raise UserError(
                f"ensemble.token: the student's tokenizer does not distinguish {text!r} from other text; give a text "
                f"that it has tokens for (it made {encoded} of {named})"
            )
    return Control(encoded, prefixes.teacher_sees, tokens(prefixes.at_evaluation))


def _after(tokens: tuple[int, ...], prompt: Prompt) -> Prompt:
    return replace(prompt, token_ids=tokens + prompt.token_ids) if tokens else prompt
