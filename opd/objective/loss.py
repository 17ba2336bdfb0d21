"""From advantages to a loss, which is minimised. Every sum is divided by a count that is an argument.

The count is the whole optimizer batch's, over all ranks and micro-batches, so that how a batch is split cannot change
its gradient.
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean"]
PerToken = Float[Tensor, "batch time"]
Mask = Bool[Tensor, "batch time"]
Divisor = Float[Tensor, "batch 1"] | float | int  # a global count, or what `divisor` gives
Bound = Annotated[float | int, Ge(0)] | None


def divisor(
    count: Mask, num_tokens: float | int, num_sequences: float | int, *, aggregation: Aggregation
) -> Float[Tensor, "batch 1"]:
    """What each token's loss is divided by.

    token_mean      num_tokens, the number of counted tokens of the whole batch: every token weighs the same
    sequence_mean   (counted tokens of the response) · num_sequences: every response weighs the same; num_sequences is
                    the number of responses of the whole batch with a counted token, and the others are left out

    No number here is 0: an empty batch has the loss 0, not NaN.
    """
    length = count.sum(-1, keepdim=True).double()
    if aggregation == "token_mean":
        return torch.full_like(length, max(float(num_tokens), 1.0))
    return length.clamp(min=1) * max(float(num_sequences), 1.0)


def policy_gradient(
    student_logp: PerToken, advantage: PerToken, weight: PerToken, keep: Mask, num_tokens: Divisor
) -> Float[Tensor, ""]:
    """-Σ_keep weight · advantage · student_logp / num_tokens: REINFORCE; advantage and weight are taken as constants.
    Adventures Eq. 3.

    `num_tokens` is the global count, or a `divisor`. What is not kept may hold anything, NaN and inf too.
    """
    scale = torch.where(keep, (advantage * weight).detach(), 0).to(student_logp.dtype)
    return -(scale * torch.where(keep, student_logp, 0) / _as(num_tokens, student_logp)).sum()


def clipped_policy_gradient(
    student_logp: PerToken,
    old_logp: PerToken,
    advantage: PerToken,
    weight: PerToken,
    keep: Mask,
    num_tokens: Divisor,
    *,
    clip_low: Bound,
    clip_high: Bound,
) -> Float[Tensor, ""]:
    """-Σ_keep weight · min(ρ A, clamp(ρ, 1 - clip_low, 1 + clip_high) A) / num_tokens, ρ = student / old (PPO).

    A bound that is null is none. For several optimizer steps on one batch: `old_logp` is the learner's before the first
    of them, where this has the gradient of `policy_gradient`.
    """
    ratio = torch.where(keep, student_logp - old_logp.detach(), 0).clamp(-80, 80).exp()
    scale = torch.where(keep, advantage.detach(), 0).to(student_logp.dtype)
    low, high = 0.0 if clip_low is None else 1 - clip_low, None if clip_high is None else 1 + clip_high
    gain = torch.minimum(ratio * scale, ratio.clamp(low, high) * scale)
    return -(torch.where(keep, weight.detach(), 0) * gain / _as(num_tokens, student_logp)).sum()


def summed(loss: PerToken, over: Mask, num_tokens: Divisor) -> Float[Tensor, ""]:
    """Σ_over loss / num_tokens, for a loss of each token that is differentiated itself."""
    return (torch.where(over, loss, 0) / _as(num_tokens, loss)).sum()


def _as(num_tokens: Tensor | float | int, like: Tensor) -> Tensor | float:
    return num_tokens.to(like.dtype) if isinstance(num_tokens, Tensor) else max(float(num_tokens), 1.0)
