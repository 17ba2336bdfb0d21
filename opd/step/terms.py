"""What is learned, as terms; `signal` gives each its weight. A term is a function of the batch, of one of two kinds:

    Advantage   a number for each token or response, taken as a constant: it weighs the policy gradient
    Loss        a number for each token that is differentiated itself

A positive weight always means the same: nearer the teacher, more reward, nearer the start, more entropy.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opd.objective import shaping
from opd.step.batch import Batch

Need = Literal["teacher", "anchor", "grade"]


@dataclass(frozen=True)
class Advantage:
    """[batch, time]: each token's own, which goes through credit. [batch]: each response's, added after credit."""

    values: Float[Tensor, "batch time"] | Float[Tensor, " batch"]


@dataclass(frozen=True)
class Loss:
    """Each token's loss, a function of `batch.student`, summed over the tokens in `over`."""

    values: Float[Tensor, "batch time"]
    over: Bool[Tensor, "batch time"]


@dataclass(frozen=True)
class Term:
    """A term as `signal` names it. `needs`: which scores of the responses must be there; `constant`: whether it is
    the same for every token of a response.
    """

    function: Callable[[Batch], Advantage | Loss]
    kind: type[Advantage] | type[Loss]
    needs: tuple[Need, ...]
    constant: bool

    def __call__(self, batch: Batch) -> Advantage | Loss:
        return self.function(batch)


def term(*, needs: tuple[Need, ...] = (), constant: bool = False) -> Callable[[Callable[[Batch], Any]], Term]:
    """Makes a `Term` of a function, whose return annotation, `Advantage` or `Loss`, is its kind."""
    return lambda function: Term(function, inspect.signature(function).return_annotation, needs, constant)


@term(needs=("teacher",))
def divergence(batch: Batch) -> Advantage:
    """-(f'(r) - f'(1)), with r = student / reference, or past the reference where `shaping.extrapolation` is not 1.

    Only for support=sampled; elsewhere the divergence is a loss over the vocabulary, with this term's weight.
    """
    student_logp = batch.student.logp
    anchor_logp = student_logp if batch.anchor_logp is None else batch.anchor_logp

    def of(log_ratio: Tensor) -> Tensor:
        return batch.divergence.advantage(
            shaping.extrapolate(log_ratio, student_logp, anchor_logp, coefficient=batch.extrapolation)
        )

    return Advantage(batch.mixture.advantage(of, student_logp, batch.teachers.logp))


@term(needs=("anchor",))
def near_start(batch: Batch) -> Advantage:
    """-log(student / anchor): its policy gradient is that of -KL(student || anchor)."""
    assert batch.anchor_logp is not None
    student_logp = batch.student.logp
    return Advantage(shaping.stay_near(torch.zeros_like(student_logp), student_logp, batch.anchor_logp, kl_coef=1))


@term(needs=("grade",), constant=True)
def reward(batch: Batch) -> Advantage:
    """The verifiable reward of a response, less its baseline where `shaping.reward_baseline` asks for one (seed-000,
    idea 5).
    """
    assert batch.reward is not None
    return Advantage(batch.reward)


@term()
def entropy(batch: Batch) -> Loss:
    """-H(student) of every counted token: minimised, it keeps the student broad. Adventures section 4."""
    return Loss(-batch.student.entropy, batch.count)
