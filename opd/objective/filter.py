"""Which tokens are learned: (signals, mask, group, knobs) -> Filtered(keep, count).

A filter ranks the valid tokens by a score and keeps a percentile range, half-open: p_min <= percentile < p_max, where
p_max = 100 includes the top. Ranges that share a border therefore share no token, and 0-30, 30-70, 70-100 together
keep each token once. Adventures section 7, Eq. 12.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opd.errors import UserError

Score = Literal["abs_k1", "signed_k1", "exact_kl", "student_entropy", "teacher_entropy"]
Scope = Literal["sequence", "group", "batch"]
Percent = Annotated[float | int, Ge(0), Le(100)]
PerToken = Float[Tensor, "batch time"]
Mask = Bool[Tensor, "batch time"]
Group = Int[Tensor, " batch"]


@dataclass(frozen=True)
class TokenSignals:
    """Numbers of each sampled token. k1 = log_ratio = student_logp - reference_logp; entropies in nats."""

    k1: PerToken
    student_entropy: PerToken
    teacher_entropy: PerToken
    exact_kl: PerToken | None


@dataclass(frozen=True)
class Filtered:
    """`keep`: tokens that get a gradient. `count`: those that stay in the denominator. `inside`: those in the range."""

    keep: Mask
    count: Mask
    inside: Mask


# All ranks' values, joined in order of ranks, and where this rank's begin.
Gather = Callable[[Float[Tensor, " own"]], tuple[Float[Tensor, " all"], int]]


def none(
    signals: TokenSignals,
    mask: Mask,
    group: Group,
    gather: Gather | None = None,
    *,
    p_min: Literal[0],
    p_max: Literal[100],
) -> Filtered:
    """Keeps every valid token."""
    return Filtered(keep=mask, count=mask, inside=mask)


def percentile(
    signals: TokenSignals,
    mask: Mask,
    group: Group,
    gather: Gather | None = None,
    *,
    score: Score,
    p_min: Percent,
    p_max: Percent,
    scope: Scope,
    denominator: Literal["all", "kept"],
) -> Filtered:
    """Keeps valid tokens with p_min <= percentile < p_max, percentile = 100 * rank / (number of valid tokens).
    Adventures section 7, Eq. 12.

    Ranks are ordinal, 0 for the lowest score; equal scores rank by position (row, then time), so every token has its
    own rank. `scope` says among which tokens: a response's, a prompt's responses', or the batch's (over all ranks,
    where `gather` joins them). With denominator "all" a filtered token has no advantage but still counts (Eq. 12);
    with "kept" it leaves the denominator too.

    Raises:
        UserError: where a valid token has no such score.
    """
    values = _score(signals, score)[mask]
    if not torch.isfinite(values).all():
        raise UserError(f"filter.score: {score} is missing or not finite for some tokens; choose a score that is known")
    if scope == "batch" and gather is not None:
        all_values, start = gather(values)
        rank, size = ranks(all_values, torch.zeros_like(all_values, dtype=torch.long))
        rank, size = rank[start : start + len(values)], size[start : start + len(values)]
    else:
        rank, size = ranks(values, _segments(mask, group, scope)[:, None].expand_as(mask)[mask])
    inside = torch.zeros_like(mask)
    inside[mask] = (rank * 100 >= p_min * size) & (rank * 100 < p_max * size)
    return Filtered(keep=inside, count=mask if denominator == "all" else inside, inside=inside)


def partition(
    signals: TokenSignals,
    mask: Mask,
    group: Group,
    gather: Gather | None = None,
    *,
    score: Score,
    p_min: Percent,
    p_max: Percent,
    scope: Scope,
) -> Filtered:
    """Keeps every valid token, and marks those in the range, for a divergence that treats them apart
    (seed-000, idea 3).
    """
    marked = percentile(
        signals, mask, group, gather, score=score, p_min=p_min, p_max=p_max, scope=scope, denominator="all"
    )
    return replace(marked, keep=mask)


def eligible(
    mask: Mask, tokens: Int[Tensor, "batch time"], *, token_ids: Sequence[int], prefix: Annotated[int, Ge(1)] | None
) -> Mask:
    """The response mask without the tokens `token_ids` (special ones, say), and up to `prefix` positions alone.

    This comes before any filter: what is not eligible is not ranked, and not counted.
    """
    allowed = mask & ~torch.isin(tokens, torch.tensor(list(token_ids), dtype=tokens.dtype, device=tokens.device))
    return allowed if prefix is None else allowed & (torch.arange(mask.shape[1], device=mask.device) < prefix)


def metrics(response: Mask, allowed: Mask, filtered: Filtered, matched: Mask) -> dict[str, float]:
    """Shares of the response's tokens: learned, and not learned, by the first reason; they sum to 1.

    `allowed` is what `eligible` left, `matched` what the rollout correction keeps.
    """
    total = response.sum().clamp(min=1)
    reasons = {
        "kept": allowed & filtered.keep & matched,
        "not_eligible": response & ~allowed,
        "filtered": allowed & ~filtered.keep,
        "mismatched": allowed & filtered.keep & ~matched,
    }
    return {name: float(where.sum() / total) for name, where in reasons.items()}


def ranks(
    values: Float[Tensor, " token"], segment: Int[Tensor, " token"]
) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
    """Ordinal rank of each value among those of its segment, from 0, equal ones by position; and their number."""
    by_value = values.argsort(stable=True)
    order = by_value[segment[by_value].argsort(stable=True)]
    sizes = torch.bincount(segment)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts[segment[order]]
    return rank, sizes[segment]


def _score(signals: TokenSignals, score: Score) -> PerToken:
    if score == "abs_k1":
        return signals.k1.abs()
    if score == "signed_k1":
        return signals.k1
    if score == "exact_kl" and signals.exact_kl is None:
        raise UserError("filter.score: exact_kl needs the whole vocabulary of student and teacher; abs_k1 does not")
    return getattr(signals, score)


def _segments(mask: Mask, group: Group, scope: Scope) -> Group:
    if scope == "group":
        return group
    return torch.arange(len(mask), device=mask.device) if scope == "sequence" else torch.zeros_like(group)
