"""Prompts made of problems, and their order."""

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import normalize

import numpy as np

from opd.data.environment import Environment, Message
from opd.data.problem import Problem
from opd.data.template import render
from opd.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Int
    from transformers import PreTrainedTokenizerBase

    from opd.data.batch import Prompt


def encode(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: Literal["chat", "raw"],
    system: str | None,
    prefix: str,
    suffix: str,
    max_prompt_length: int,
    environment: Environment,
    date: datetime | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> "tuple[list[Prompt], list[str]]":
    """Prompts as the student sees them, and the ids of the problems left out because theirs is too long.

    A conversation begins with the problem's earlier turns and goes on as `environment` says, with prefix and suffix
    around its last message. `raw` continues its texts; `chat` puts them (after the turn `system`, where they have no
    system turn of their own) into the tokenizer's chat template, which may ask for the `date`, and opens the
    assistant's turn. `notice` gets a sentence where the tokens of prompts stand for
    other texts than these.

    Raises:
        UserError: where the tokenizer has no chat template or its template refuses the turns, `system` is given
            without one, a prompt is empty, ends with an end-of-text token or begins with two beginnings, or all are
            too long.
    """
    from opd.data.batch import Prompt

    begun: list[list[Message]] = [
        [*_earlier(problem), *turns[:-1], {**turns[-1], "content": prefix + turns[-1]["content"] + suffix}]
        for problem, turns in zip(problems, environment.start(problems), strict=True)
    ]
    if template == "chat":
        texts = render(tokenizer, [_with_system(turns, system) for turns in begun], key="prompts.template", date=date)
    elif system is not None:
        raise UserError("prompts.system: a raw prompt has no system turn; use prompts.template=chat or prompts.prefix")
    else:
        texts = [_joined(turns) for turns in begun]
    # A template writes the beginning of a text itself.
    encoded: Any = tokenizer(texts, add_special_tokens=template == "raw")["input_ids"] if texts else []
    changes = [
        (problem.id, change)
        for problem, text, token_ids in zip(problems, texts, encoded, strict=True)
        if (change := _change(text, token_ids, tokenizer))
    ]
    if changes:
        first, (given, seen) = changes[0]
        notice(
            f"the tokenizer changes the text of {len(changes)} of {len(texts)} prompts, and the models answer what it "
            f"makes of them: in the first of them, {first}, {seen!r} stands for {given!r}"
        )
    prompts, dropped = [], []
    for problem, token_ids in zip(problems, encoded, strict=True):
        if not token_ids:
            raise UserError(f"problem {problem.id!r}: the tokenizer produces no tokens for it")
        _check_ends(problem, token_ids, tokenizer, template)
        if len(token_ids) > max_prompt_length:
            dropped.append(problem.id)
        else:
            prompts.append(Prompt(**vars(problem), token_ids=tuple(token_ids)))
    if dropped and not prompts:
        shortest = min(len(token_ids) for token_ids in encoded)
        raise UserError(
            f"prompts.max_prompt_length={max_prompt_length}: all {len(dropped)} prompts are longer, "
            f"the shortest has {shortest} tokens"
        )
    return prompts, dropped


def _earlier(problem: Problem) -> list[Message]:
    return [{"role": role, "content": content} for role, content in problem.earlier]


def _with_system(turns: list[Message], system: str | None) -> list[Message]:
    """The conversation after a system turn, unless it has one of its own."""
    if system is None or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": system}, *turns]


def _check_ends(
    problem: Problem, token_ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase", template: Literal["chat", "raw"]
) -> None:
    """Refuses a prompt that a tokenizer or template has closed: what follows it would be another text."""
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    if token_ids[-1] in ends:
        token = tokenizer.convert_ids_to_tokens(token_ids[-1])
        cause = (
            "its chat template closes the turn that the model should answer in"
            if template == "chat"
            else "its tokenizer adds that (add_eos_token), or prompts.suffix does"
        )
        raise UserError(
            f"problem {problem.id!r}: its prompt ends with {token!r}, after which no answer follows; {cause}"
        )
    first = tokenizer.bos_token_id
    if first is not None and first not in ends and list(token_ids[:2]) == [first, first]:
        raise UserError(
            f"problem {problem.id!r}: its prompt begins with {tokenizer.bos_token!r} twice; leave it out of "
            "prompts.prefix"
        )


def _change(text: str, token_ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str] | None:
    """Where the tokens first stand for another text: a few characters of the text and of the other.

    Not counted: the form of accents, spaces around the text, what a tokenizer puts before every text, and characters
    that it does not know, which `unreadable` finds.
    """
    if tokenizer.unk_token_id in token_ids:
        return None
    wanted, changes = normalize("NFC", text).strip(), []
    for skip in (False, True):
        decoded: Any = tokenizer.decode(list(token_ids), skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        found = normalize("NFC", decoded).strip()
        if wanted in found:
            return None
        at = next((at for at, (one, other) in enumerate(zip(wanted, found, strict=False)) if one != other), len(found))
        changes.append((at, wanted[at : at + 12], found[at : at + 12]))
    return max(changes)[1:]


def unreadable(prompts: "Sequence[Prompt]", tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The ids of prompts with a token for what the tokenizer does not know: the model does not see what is there."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:
        return []
    return [prompt.id for prompt in prompts if unknown in prompt.token_ids]


def epoch_order(num_prompts: int, *, seed: int, epoch: int) -> "Int[np.ndarray, ' prompt']":
    """A permutation of range(num_prompts): the indices sorted by 64 random bits each, drawn from (seed, epoch).

    Raw bits of a Philox stream, which NumPy keeps the same between versions (its `permutation` may change).
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_prompts)
    return np.argsort(bits, kind="stable")


def batch_indices(num_prompts: int, *, batch_size: int, step: int, seed: int) -> list[int]:
    """The prompts of the `step`-th batch, from 0, of an endless run of epochs; each epoch holds every prompt once.

    A batch may end one epoch and begin the next; a prompt is never twice in a batch.

    Raises:
        ValueError: where a batch is larger than the set, or `step` is negative.
    """
    if not 0 < batch_size <= num_prompts or step < 0:
        raise ValueError(f"no batch {step} of {batch_size} prompts from a set of {num_prompts}")
    epoch, first = divmod(step * batch_size, num_prompts)
    ending = _order(num_prompts, batch_size, seed, epoch)[first : first + batch_size]
    if len(ending) == batch_size:
        return ending.tolist()
    return [*ending.tolist(), *_order(num_prompts, batch_size, seed, epoch + 1)[: batch_size - len(ending)].tolist()]


# ---- order


@lru_cache(maxsize=2)
def _order(num_prompts: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """`epoch_order`, with the prompts that the batch across the last epoch's end has already seen moved behind it."""
    # An epoch's order depends on the previous one's, back to the last epoch that began with a batch.
    aligned = epoch - epoch % (batch_size // math.gcd(num_prompts, batch_size))
    order = epoch_order(num_prompts, seed=seed, epoch=aligned)
    for each in range(aligned + 1, epoch + 1):
        shared = each * num_prompts % batch_size  # prompts of the previous epoch in the batch across its end
        seen, order = order[num_prompts - shared :], epoch_order(num_prompts, seed=seed, epoch=each)
        first = np.flatnonzero(~np.isin(order, seen))[: batch_size - shared]
        order = np.concatenate([order[first], np.delete(order, first)])
    return order


# ---- turns


def reply_ids(
    before: Sequence[Message],
    reply: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: Literal["chat", "raw"],
    date: datetime | None = None,
) -> list[int]:
    """The tokens of a reply after the conversation `before`, which ends with a turn of the model's; the chat template
    closes that turn where it was left open, and opens the model's next one.

    Raises:
        UserError: where the chat template writes earlier turns differently once a later one is there.
    """
    if template == "raw":
        return tokenizer(_joined(reply), add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]
    [everything] = render(tokenizer, [[*before, *reply]], key="prompts.template", date=date)
    [closed] = render(tokenizer, [before], key="prompts.template", date=date, opened=False)
    # Sampled tokens end with the turn's end; what a template puts after that, mostly a line break, was not sampled.
    closed = closed.rstrip()
    if not everything.startswith(closed):
        raise UserError("prompts.template=chat: the chat template rewrites earlier turns when a reply is added")
    return tokenizer(everything[len(closed) :], add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]


def _joined(turns: Sequence[Message]) -> str:
    return "".join(turn["content"] for turn in turns)
