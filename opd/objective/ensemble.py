"""Several teachers → one reference: (teacher_logp "teacher *batch", progress in [0, 1]) -> reference_logp "*batch".

Each ensemble is one function that weighs the teachers at a point of training; `opd.objective.mixture` makes the rest
of it. Teachers come smallest first. A teacher without weight at a step is neither loaded nor run.
"""

import random as randomness
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.errors import UserError
from opd.objective.mixture import Mixture, Number, Prefixes, Rows, ensemble


@ensemble(at_least=1, at_most=1)
def single(num_teachers: int, progress: Number, rows: Rows | None) -> Mixture:
    """The one teacher there is, π_1. Adventures section 2."""
    return Mixture(torch.ones(1), "probability")


@ensemble(at_least=2)
def arithmetic(num_teachers: int, progress: Number, rows: Rows | None, *, weights: list[Number] | None) -> Mixture:
    """Mean of probabilities, Σ w_k π_k; null weighs all the same. Adventures section 6."""
    return Mixture(_shares(num_teachers, weights), "probability")


@ensemble(at_least=2)
def geometric(
    num_teachers: int, progress: Number, rows: Rows | None, *, weights: list[Number] | None, normalize: bool
) -> Mixture:
    """Weighted geometric mean, Π π_k^w_k; null weighs all the same. Adventures section 6.

    Without `normalize` it is the product alone, whose reverse-KL gradient is exact (the normaliser is the same for all
    tokens of a position) while its KL and the weights of other divergences are shifted. With it, the whole vocabulary
    is needed.
    """
    return Mixture(_shares(num_teachers, weights), "log_normalized" if normalize else "log")


@ensemble(at_least=2)
def advantage_mean(num_teachers: int, progress: Number, rows: Rows | None, *, weights: list[Number] | None) -> Mixture:
    """Mean of the advantages that the teachers give one by one, Σ w_k A_k: the text of Adventures section 6."""
    return Mixture(_shares(num_teachers, weights), "advantage")


@ensemble(at_least=2)
def hard_switch(num_teachers: int, progress: Number, rows: Rows | None, *, boundaries: list[Number] | None) -> Mixture:
    """One teacher at a time, from the first (smallest) to the last, as training goes on. Adventures section 6.

    `boundaries` are the points of progress at which the next teacher takes over (one fewer than teachers, rising,
    inside (0, 1)); null gives each an equal share. A boundary belongs to the teacher that takes over there, and
    progress 1 to the last.
    """
    if boundaries is None:
        index = min(int(progress * num_teachers), num_teachers - 1)
    else:
        index = bisect_right(list(boundaries), progress)
    return Mixture(_one_hot(num_teachers, index), "probability")


@ensemble(at_least=2)
def soft_switch(num_teachers: int, progress: Number, rows: Rows | None) -> Mixture:
    """From the first teacher to the last along training, mixing the probabilities of two neighbours linearly.
    Adventures section 6.
    """
    position = progress * (num_teachers - 1)
    distance = (torch.arange(num_teachers, dtype=torch.float64) - position).abs()
    return Mixture((1 - distance).clamp(min=0), "probability")


def _random(num_teachers: int, domains: Sequence[str], seed: Sequence[int]) -> list[int]:
    draw = randomness.Random(repr(tuple(seed)))
    return [draw.randrange(num_teachers) for _ in domains]


@ensemble(at_least=2, needs_rows=True, assigns=_random)
def random(num_teachers: int, progress: Number, rows: Rows) -> Mixture:
    """One teacher a prompt, drawn at random. Adventures section 6."""
    return _routed(num_teachers, rows)


def _evenly(num_teachers: int, domains: Sequence[str], seed: Sequence[int], **knobs: Any) -> list[int]:
    return [index % num_teachers for index in range(len(domains))]


def _tokens(num_teachers: int, *, token: str, teacher_sees_token: bool, evaluate_with: str) -> Prefixes:
    texts = [token.replace("{}", str(index)) for index in range(num_teachers)]
    return Prefixes(tuple(texts), teacher_sees_token, texts[-1] if evaluate_with == "last" else "")


@ensemble(at_least=2, needs_rows=True, assigns=_evenly, prefixes=_tokens)
def control_token(
    num_teachers: int,
    progress: Number,
    rows: Rows,
    *,
    token: str,
    teacher_sees_token: bool,
    evaluate_with: Literal["last", "none"],
) -> Mixture:
    """The batch split evenly over the teachers; before its prompt the student sees its teacher's token.
    Adventures section 6.

    `token` is that token's text, with {} for the teacher's place in the ladder, from 0; `teacher_sees_token` puts it
    into the teacher's context too; at evaluation the student is given that of the last teacher, or none.
    """
    return _routed(num_teachers, rows)


def _by_domain(num_teachers: int, domains: Sequence[str], seed: Sequence[int], *, domain: dict[str, int]) -> list[int]:
    if missing := sorted(set(domains) - set(domain)):
        raise UserError(f"ensemble.domain: has no teacher for the domain {missing[0]!r}; it knows {sorted(domain)}")
    return [domain[name] for name in domains]


@ensemble(at_least=2, needs_rows=True, assigns=_by_domain)
def by_domain(num_teachers: int, progress: Number, rows: Rows, *, domain: dict[str, int]) -> Mixture:
    """Each prompt to the teacher of its domain (`domain`: name → index): several specialists into one student."""
    return _routed(num_teachers, rows)


@ensemble(at_least=2, needs_rows=True)
def best_of(num_teachers: int, progress: Number, rows: Rows, *, by: Literal["likelihood", "entropy"]) -> Mixture:
    """For each prompt the teacher that, over its responses' tokens, is likeliest to say them or least uncertain."""
    per_token = rows.logp if by == "likelihood" else -rows.entropy
    size = int(rows.group.max()) + 1 if len(rows.group) else 0
    score = per_token.new_zeros(num_teachers, size)
    score = score.index_add(1, rows.group, torch.where(rows.mask, per_token, 0).sum(-1))
    return _routed(num_teachers, rows, score.argmax(0)[rows.group])


def _routed(num_teachers: int, rows: Rows, teacher: Int[Tensor, " batch"] | None = None) -> Mixture:
    teacher = rows.teacher if teacher is None else teacher
    if teacher is None:
        raise ValueError("rows.teacher: the responses' teachers were not assigned")
    return Mixture(torch.nn.functional.one_hot(teacher, num_teachers).T.float(), "probability")


def _shares(num_teachers: int, weights: Sequence[Number] | None) -> Float[Tensor, " teacher"]:
    shares = torch.tensor([1.0] * num_teachers if weights is None else weights, dtype=torch.float64)
    return shares / shares.sum()


def _one_hot(num_teachers: int, index: int) -> Float[Tensor, " teacher"]:
    return torch.nn.functional.one_hot(torch.tensor(index), num_teachers).float()
