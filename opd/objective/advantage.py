"""From a token's signal to its advantage: credit over time, then whitening. No function here carries a gradient."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from jaxtyping import Bool, Float, Int
from torch import Tensor

Level = Literal["none", "sample", "group", "batch"]
PerToken = Float[Tensor, "batch time"]
Mask = Bool[Tensor, "batch time"]
Group = Int[Tensor, " batch"]


def discounted_return(signal: PerToken, mask: Mask, gamma: Annotated[float | int, Ge(0), Le(1)]) -> PerToken:
    """R_t = Σ_{k >= t} gamma^(k-t) · signal_k over valid k: the signal of a token and, discounted, of all after it.
    Adventures section 4, revisiting OPD.

    The discount counts positions, masked ones too. 0 where `mask` is False. gamma = 0 is the signal itself (token
    level), gamma = 1 the reward-to-go, which for reverse KL is the sequence-level gradient (revisiting OPD, section 1).
    """
    total = torch.where(mask, signal, 0).double()
    reach, time = 1, signal.shape[-1]
    # Doubling: after each round total_t holds the discounted sum of the next `reach` positions.
    while reach < time and gamma**reach > 0:
        total[:, :-reach] = total[:, :-reach] + gamma**reach * total[:, reach:]
        reach *= 2
    return torch.where(mask, total, 0).to(signal.dtype)


def whiten(
    advantage: PerToken,
    mask: Mask,
    level: Level,
    group: Group,
    all_reduce: Callable[[Tensor], Tensor] = lambda total: total,
) -> tuple[PerToken, Float[Tensor, ""], Float[Tensor, ""]]:
    """(advantage - mean) / std over the valid tokens of a response, of a prompt's responses, or of the batch.
    Adventures section 4.

    std is the population's (divided by n). Where it is 0, or rounding, the result is 0: one token, or tokens that all
    agree, say nothing about which is better. Also returns the mean and std that were removed, averaged over valid
    tokens (0 and 1 where `level` is "none"), for they are metrics. 0 where `mask` is False.

    `all_reduce` sums a tensor over the ranks, for level "batch"; a response and its group live on one rank.
    """
    x = torch.where(mask, advantage, 0).double()
    if level == "none":
        return x.to(advantage.dtype), x.new_zeros(()), x.new_ones(())
    reduce = all_reduce if level == "batch" else lambda total: total
    segment = {"sample": torch.arange(len(x), device=x.device), "group": group, "batch": torch.zeros_like(group)}[level]

    def total(values: PerToken) -> Float[Tensor, "batch 1"]:
        size = 1 if level == "batch" else int(segment.max()) + 1 if len(segment) else 0
        return reduce(values.new_zeros(size).index_add(0, segment, values.sum(-1)))[segment][:, None]

    count = total(mask.double()).clamp(min=1)
    mean = total(x) / count
    centred = torch.where(mask, x - mean, 0)
    std = (total(centred**2) / count).sqrt()
    scale = (total(x**2) / count).sqrt()
    white = torch.where(std > 1e-10 * scale, centred / std, 0)
    return white.to(advantage.dtype), _over(mean, mask), _over(std, mask)


def _over(rows: Float[Tensor, "batch 1"], mask: Mask) -> Float[Tensor, ""]:
    return (rows * mask).sum() / mask.sum().clamp(min=1)
