"""What to do where the sampler and the learner disagree: (student_logp, rollout_logp, mask) -> (weight, keep).

The ratio is ρ = π_student / π_rollout = exp(student_logp - rollout_logp), learner over sampler: above 1 where the
learner likes the token better than the engine that sampled it did. `weight` multiplies a token's loss; `keep` is both
the mask and the denominator. Neither carries a gradient. The range is [low, high], both ends included.
Adventures section 3.
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

LogP = Float[Tensor, "batch time"]
Weight = Float[Tensor, "batch time"]
Mask = Bool[Tensor, "batch time"]
Low = Annotated[float | int, Ge(0)] | None
High = Annotated[float | int, Gt(0)]
Level = Literal["token", "sequence", "geometric"]


def none(student_logp: LogP, rollout_logp: LogP, mask: Mask, *, low: None, high: None) -> tuple[Weight, Mask]:
    """Weight 1 for every valid token. Adventures section 2."""
    return mask.to(student_logp.dtype), mask


def tis(
    student_logp: LogP, rollout_logp: LogP, mask: Mask, *, low: Low, high: High, level: Level = "token"
) -> tuple[Weight, Mask]:
    """Truncated importance sampling: weight ρ clamped to [low, high]; low null clamps from above alone.
    Adventures section 3.
    """
    ratio = ratios(student_logp, rollout_logp, mask, level)
    return torch.where(mask, ratio.clamp(min=low, max=high), 0), mask


def mis(
    student_logp: LogP, rollout_logp: LogP, mask: Mask, *, low: Low, high: High, level: Level = "token"
) -> tuple[Weight, Mask]:
    """Masked importance sampling: tokens with ρ outside [low, high] leave mask and denominator; the rest weigh 1.
    Adventures section 3.
    """
    keep = mask & _inside(ratios(student_logp, rollout_logp, mask, level), low, high)
    return keep.to(student_logp.dtype), keep


def icepop(
    student_logp: LogP, rollout_logp: LogP, mask: Mask, *, low: Low, high: High, level: Level = "token"
) -> tuple[Weight, Mask]:
    """IcePop: weight ρ inside [low, high], 0 outside; mask and denominator stay as they are. Ling Team 2025."""
    ratio = ratios(student_logp, rollout_logp, mask, level)
    return torch.where(mask & _inside(ratio, low, high), ratio, 0), mask


def ratios(student_logp: LogP, rollout_logp: LogP, mask: Mask, level: Level) -> Weight:
    """ρ = exp(student_logp - rollout_logp), detached: each token's own, or one for all tokens of a response, their
    product ("sequence") or geometric mean ("geometric"). Exponents are clamped to ±80; 1 where `mask` is False.
    """
    log_ratio = torch.where(mask, student_logp.detach() - rollout_logp.detach(), 0)
    if level != "token":
        log_ratio = log_ratio.sum(-1, keepdim=True)
        if level == "geometric":
            log_ratio = log_ratio / mask.sum(-1, keepdim=True).clamp(min=1)
        log_ratio = torch.where(mask, log_ratio, 0)
    return log_ratio.clamp(-80, 80).exp()


def metrics(student_logp: LogP, rollout_logp: LogP, mask: Mask, weight: Weight, keep: Mask) -> dict[str, float]:
    """How far sampler and learner are apart, and what the correction did about it; NaN where no token is valid.

    log_ppl_drift    mean over responses of the mean of rollout_logp - student_logp: log of the ratio of perplexities
    ppl_ratio        mean over responses of perplexity(student) / perplexity(rollout)
    abs_log_ratio    mean over tokens of |log ρ|          ratio_max   largest ρ of a token
    ess              (Σ w)² / (n Σ w²) over the n valid tokens, 1 where all weigh the same
    masked           share of valid tokens without a gradient, by mask or by weight 0
    """
    if not mask.any():
        return dict.fromkeys(
            ("log_ppl_drift", "ppl_ratio", "abs_log_ratio", "ratio_max", "ess", "masked"), float("nan")
        )
    log_ratio = torch.where(mask, student_logp.detach() - rollout_logp.detach(), 0).double()
    rows = mask.any(-1)
    drift = -(log_ratio.sum(-1)[rows] / mask.sum(-1)[rows])
    weights = torch.where(keep, weight, 0).double()[mask]
    squares = (weights**2).sum() * len(weights)
    numbers = {
        "log_ppl_drift": drift.mean(),
        "ppl_ratio": drift.clamp(-80, 80).exp().mean(),
        "abs_log_ratio": log_ratio[mask].abs().mean(),
        "ratio_max": log_ratio[mask].max().clamp(-80, 80).exp(),
        "ess": weights.sum() ** 2 / squares if squares > 0 else squares,
        "masked": (weights == 0).double().mean(),
    }
    return {name: float(number) for name, number in numbers.items()}


def _inside(ratio: Weight, low: float | None, high: float) -> Mask:
    return (ratio <= high) if low is None else (ratio >= low) & (ratio <= high)
