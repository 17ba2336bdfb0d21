"""Control tokens: a few tokens before a prompt that tell the student which teacher it will be held to."""

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
    """The tokens of each teacher (none, for most ensembles), whether teachers see them, and those at evaluation."""

    tokens: tuple[tuple[int, ...], ...]
    teacher_sees: bool
    at_evaluation: tuple[int, ...]

    @property
    def longest(self) -> int:
        return max(map(len, self.tokens))

    def shown(self, prompts: Sequence[Prompt], routed: Sequence[int] | None) -> Sequence[Prompt]:
        """The prompts as the student sees them; `routed` is each one's teacher."""
        if routed is None or not self.longest:
            return prompts
        return [_after(self.tokens[teacher], prompt) for prompt, teacher in zip(prompts, routed, strict=True)]

    def examined(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The problems of a benchmark as the student sees them."""
        return [_after(self.at_evaluation, prompt) for prompt in prompts]

    def asked(self, rollout: Rollout, prompts: Sequence[Prompt]) -> Rollout:
        """The rollout as the teachers see it: with the plain prompts, where the tokens are the student's alone."""
        if self.teacher_sees or not self.longest:
            return rollout
        rows = [list(prompts[index].token_ids) for index in rollout.group.tolist()]
        prompt, prompt_mask = pad(rows, 0, "left")
        return replace(rollout, prompt=prompt, prompt_mask=prompt_mask)


def encode(prefixes: Prefixes, tokenizer: "PreTrainedTokenizerBase") -> Control:
    """The texts as tokens.

    Raises:
        UserError: where the tokenizer cannot tell two teachers apart, or does not know a text.
    """

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    encoded = tuple(tokens(text) for text in prefixes.texts)
    named = [text for text in prefixes.texts if text]
    for text, ids in zip(prefixes.texts, encoded, strict=True):
        if text and (not ids or tokenizer.unk_token_id in ids or encoded.count(ids) > 1):
            raise UserError(
                f"ensemble.token: the student's tokenizer does not tell {text!r} from other text; give a text that it "
                f"has tokens for (it made {encoded} of {named})"
            )
    return Control(encoded, prefixes.teacher_sees, tokens(prefixes.at_evaluation))


def _after(tokens: tuple[int, ...], prompt: Prompt) -> Prompt:
    return replace(prompt, token_ids=tokens + prompt.token_ids) if tokens else prompt
