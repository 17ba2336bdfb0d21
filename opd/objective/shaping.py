"""Transforms of advantages between divergence and whitening, and token weights. No gradient here."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float, Int
from torch import Tensor

Number = float | int
PerToken = Float[Tensor, "batch time"]
Mask = Bool[Tensor, "batch time"]
Group = Int[Tensor, " batch"]
NotNegative = Annotated[Number, Ge(0)]
AboveZero = Annotated[Number, Gt(0)]


def sequence_return(signal: PerToken, mask: Mask) -> PerToken:
    """R_t = Σ_k signal_k over the whole response, past tokens too: seed-003's sequence-level estimator.

    For reverse KL its expectation is the gradient of the sequence-level divergence, as is that of the reward-to-go
    (`discounted_return` with gamma 1), which has less variance.
    """
    valid = torch.where(mask, signal, 0)
    return torch.where(mask, valid.double().sum(-1, keepdim=True).to(signal.dtype), 0)


def subtract_baseline(
    advantage: PerToken, mask: Mask, group: Group, *, baseline: Literal["none", "group", "batch"]
) -> PerToken:
    """Advantage minus its mean over the valid tokens of the prompt's responses, or of the batch."""
    if baseline == "none":
        return torch.where(mask, advantage, 0)
    segment = group if baseline == "group" else torch.zeros_like(group)
    size = int(segment.max()) + 1 if len(segment) else 0
    totals = torch.zeros(2, size, dtype=torch.float64, device=advantage.device)
    sums = torch.stack([torch.where(mask, advantage, 0).double().sum(-1), mask.double().sum(-1)])
    total, count = totals.index_add(1, segment, sums)
    mean = (total / count.clamp(min=1))[segment][:, None]
    return torch.where(mask, advantage - mean, 0).to(advantage.dtype)


def clip(advantage: PerToken, mask: Mask, *, limit: AboveZero | None) -> tuple[PerToken, float]:
    """Advantage within [-limit, limit], and the share of valid tokens that this changed; null leaves it as it is."""
    if limit is None:
        return advantage, 0.0
    changed = (advantage.abs() > limit) & mask
    return advantage.clamp(-limit, limit), float(changed.sum() / mask.sum().clamp(min=1))


def stay_near(advantage: PerToken, student_logp: PerToken, anchor_logp: PerToken, *, kl_coef: NotNegative) -> PerToken:
    """advantage - kl_coef · log(student / anchor): the gradient of an added kl_coef · KL(student || anchor)."""
    if kl_coef == 0:
        return advantage
    return advantage - kl_coef * (student_logp - anchor_logp).detach()


def extrapolate(
    log_ratio: Float[Tensor, "*shape"],
    student_logp: Float[Tensor, "*shape"],
    anchor_logp: Float[Tensor, "*shape"],
    *,
    coefficient: AboveZero,
) -> Float[Tensor, "*shape"]:
    """log(student / anchor) - coefficient · log(reference / anchor), in the place of log(student / reference). G-OPD.

    Above 1 the student is sent past the reference, away from the anchor: its target is
    anchor · (reference / anchor)^coefficient, not normalised. 1 is plain distillation.
    """
    if coefficient == 1:
        return log_ratio
    return coefficient * log_ratio + (1 - coefficient) * (student_logp - anchor_logp)


def add_reward(advantage: PerToken, reward: Float[Tensor, " batch"], mask: Mask, *, weight: Number) -> PerToken:
    """advantage + weight · reward on every valid token (seed-000, idea 5).

    `reward` is a response's verifiable reward, less its baseline where one is wanted.
    """
    return advantage if weight == 0 else torch.where(mask, advantage + weight * reward[:, None], advantage)


def pass_rate_weight(correct: Bool[Tensor, " batch"], group: Group, *, power: NotNegative) -> Float[Tensor, " batch"]:
    """(4 p (1 - p))^power with p the share of the prompt's responses that are correct: 1 at p = 1/2, less at both ends.
    A curriculum (seed-000, idea 6), by a rule of our own.

    power 0 weighs all prompts the same, also those always or never solved.
    """
    size = int(group.max()) + 1 if len(group) else 0
    ones = torch.ones(len(group), dtype=torch.float64, device=group.device)
    count = ones.new_zeros(size).index_add(0, group, ones)
    rate = (ones.new_zeros(size).index_add(0, group, correct.double()) / count.clamp(min=1))[group]
    return (4 * rate * (1 - rate)).pow(power).float()


def prefix_weight(advantage: PerToken, mask: Mask, *, strength: NotNegative) -> PerToken:
    """w_t = 1 + strength · (1 - Σ_{k<t} |A_k| / Σ_k |A_k|): early disagreements weigh more (IW-OPD). 0 where masked."""
    size = torch.where(mask, advantage.abs(), 0).double()
    total = size.sum(-1, keepdim=True)
    before = (size.cumsum(-1) - size) / torch.where(total > 0, total, 1)
    return torch.where(mask, 1 + strength * (1 - before), 0).to(advantage.dtype)
