"""Which tokens of the vocabulary a divergence is summed over, at each position.

    sampled   the sampled token alone: the divergence acts as a policy-gradient weight
    full      every token
    topk      the K likeliest of the teacher, the student, or both together, and a tail that stands for the rest

With K the whole vocabulary every tail equals `full`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opd.objective.divergence import FLOOR, Divergence, narrow

Of = Literal["teacher", "student", "union"]
Tail = Literal["renormalize", "bucket", "sampled", "drop"]


@dataclass(frozen=True)
class Support:
    """Where a divergence is summed. `tail` says what stands for the tokens outside the top K:

    renormalize   nothing: student and reference are both made to sum to 1 over the K (revisiting OPD)
    bucket        one more token that holds the rest of the mass of each
    sampled       the sampled token, where it lies outside: an unbiased estimate of the rest of the sum
    drop          nothing: the sum over the K, each token's part taken with f(r) - f'(1) (r - 1), which is never
                  negative, so that the mass inside is not shrunk for its own sake
    """

    kind: Literal["sampled", "full", "topk"]
    k: int | None = None
    of: Of | None = None
    tail: Tail | None = None

    def choose(
        self, student: Float[Tensor, "token vocabulary"], reference: Float[Tensor, "token vocabulary"]
    ) -> tuple[Int[Tensor, "token k"], Bool[Tensor, "token k"], Float[Tensor, " token"]]:
        """Token ids, which of them count (a token that is in both sets counts once), and the overlap |S ∩ T| / K.

        `student` and `reference` may be logits or log-probs.
        """
        k = min(self.k or student.shape[-1], student.shape[-1])
        student_ids, reference_ids = (scores.topk(k, dim=-1, sorted=False).indices for scores in (student, reference))
        both = (student_ids[:, :, None] == reference_ids[:, None, :]).any(-1)
        overlap = both.double().mean(-1)
        if self.of != "union":
            ids = student_ids if self.of == "student" else reference_ids
            return ids, torch.ones_like(ids, dtype=torch.bool), overlap
        return torch.cat([reference_ids, student_ids], -1), torch.cat([torch.ones_like(both), ~both], -1), overlap

    def measure(
        self,
        divergence: Divergence,
        student_logp: Float[Tensor, "token k"],
        reference_logp: Float[Tensor, "token k"],
        valid: Bool[Tensor, "token k"],
        sampled: tuple[Float[Tensor, " token"], Float[Tensor, " token"], Bool[Tensor, " token"]] | None,
    ) -> Float[Tensor, " token"]:
        """D over the chosen tokens and the tail, differentiable in the student's log-probs.

        `sampled` is the sampled token's log-prob by student and reference, and whether it is among the chosen; only
        the tail "sampled" needs it.
        """
        student, reference = (torch.where(valid, logp, -torch.inf) for logp in (student_logp, reference_logp))
        if self.tail == "renormalize":
            student, reference = student.log_softmax(-1), reference.log_softmax(-1)
        if self.tail == "bucket":
            student, reference = (torch.cat([logp, _rest(logp)], -1) for logp in (student, reference))
        total = _sum(divergence, student, reference)
        if self.tail == "sampled":
            if sampled is None:
                raise ValueError("tail=sampled needs the sampled tokens")
            student_token, reference_token, inside = sampled
            total = total + torch.where(inside, 0, _one(divergence, student_token, reference_token))
        return total

    def exact(
        self,
        divergence: Divergence,
        student_logp: Float[Tensor, "token vocabulary"],
        reference_logp: Float[Tensor, "token vocabulary"],
        tokens: Int[Tensor, " token"] | None = None,
    ) -> Float[Tensor, " token"]:
        """D of each position from full distributions: the plain form, for small vocabularies and for tests."""
        if self.kind == "full":
            return divergence.exact(student_logp, reference_logp)
        ids, valid, _ = self.choose(student_logp, reference_logp)
        sampled = None
        if tokens is not None:
            here = tokens[:, None]
            inside = ((ids == here) & valid).any(-1)
            sampled = student_logp.gather(-1, here)[:, 0], reference_logp.gather(-1, here)[:, 0], inside
        return self.measure(divergence, student_logp.gather(-1, ids), reference_logp.gather(-1, ids), valid, sampled)


def sampled() -> Support:
    """The sampled token alone: policy gradient with the divergence's slope as its weight. Adventures Eq. 4."""
    return Support("sampled")


def full() -> Support:
    """The whole vocabulary: the exact divergence, differentiated: OPD-full (seed-000)."""
    return Support("full")


def topk(*, k: Annotated[int, Ge(1)], of: Of, tail: Tail) -> Support:
    """The `k` likeliest tokens `of` the teacher, the student or the union of both, and what stands for the rest
    (revisiting OPD has the teacher's, renormalised).
    """
    return Support("topk", k, of, tail)


def _rest(logp: Float[Tensor, "token k"]) -> Float[Tensor, "token 1"]:
    """log(1 - Σ p), clamped above the rounding error of the sum."""
    inside = logp.logsumexp(-1, keepdim=True)
    return torch.log(-torch.expm1(inside.clamp(max=-torch.finfo(logp.dtype).eps)))


def _sum(
    divergence: Divergence, student_logp: Float[Tensor, "token k"], reference_logp: Float[Tensor, "token k"]
) -> Float[Tensor, " token"]:
    """Σ reference · (f(r) - f'(1) (r - 1)), whose derivative by a log-prob is student · slope."""
    student, reference = student_logp.detach().double().clamp(min=FLOOR), reference_logp.double().clamp(min=FLOOR)
    u, p, q = student - reference, student.exp(), reference.exp()
    value = (q * divergence.generator(u) - divergence.offset() * (p - q)).sum(-1)
    return _with_gradient(value, p * divergence.slope(u), student_logp)


def _one(
    divergence: Divergence, student_logp: Float[Tensor, " token"], reference_logp: Float[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """The one-sample estimate of `_sum`, and of its gradient."""
    u = student_logp.detach().double().clamp(min=FLOOR) - reference_logp.double().clamp(min=FLOOR)
    value = divergence.value(u) + divergence.offset() * torch.expm1(-u)
    return _with_gradient(value, divergence.slope(u)[:, None], student_logp[:, None])


def _with_gradient(
    value: Float[Tensor, " token"], gradient: Float[Tensor, "token k"], logp: Float[Tensor, "token k"]
) -> Float[Tensor, " token"]:
    """`value`, in the precision of `logp`, with `gradient` as its derivative by `logp`."""
    value, gradient = narrow(value, logp.dtype), narrow(gradient, logp.dtype)
    # -inf marks what is not there: its derivative is 0, and inf - inf must not arise.
    surrogate = (gradient * torch.where(torch.isfinite(logp), logp, 0)).sum(-1)
    return value + (surrogate - surrogate.detach())
