"""From a scored batch to gradients: on the sampled tokens by policy gradient, or through whole distributions.

A learner prepares a batch whole, because baselines, whitening and counts are the batch's, and then learns from it part
by part, an optimizer update each.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opd.config.schema import RunConfig
from opd.data.batch import Rollout, TeacherScores, TokenScores
from opd.model.policy import Policy
from opd.objective import shaping
from opd.objective.advantage import discounted_return, whiten
from opd.objective.divergence import Chosen
from opd.objective.loss import clipped_policy_gradient, entropy_bonus, policy_gradient
from opd.objective.mixture import Mixture
from opd.objective.support import Support
from opd.ranks.dist import Ranks
from opd.teacher.whole import Whole

PerToken = Float[Tensor, "batch time"]


@dataclass(frozen=True)
class Batch:
    """All ranks' responses of a step and what was found of them; `own` are this rank's.

    `divergence` is each token's; `keep` gets a gradient, `count` stays in the denominator, which is `num_tokens` once
    the batch is cut into the `parts` that are learned. `anchor_logp` and `reward` are None where nothing asks for them.
    """

    own: Rollout
    rollout: Rollout
    student: TokenScores
    teachers: TeacherScores
    mixture: Mixture
    divergence: Chosen
    weight: PerToken
    keep: Bool[Tensor, "batch time"]
    count: Bool[Tensor, "batch time"]
    anchor_logp: PerToken | None
    reward: Float[Tensor, " batch"] | None
    advantage: PerToken | None = None
    num_tokens: Float[Tensor, "batch 1"] | None = None

    def parts(self, num_parts: int, ranks: Ranks, divisor: Callable[..., Tensor]) -> "Iterator[Batch]":
        """This rank's share of each part of the batch, its denominators those of the part over all ranks."""
        size, before = len(self.rollout) // num_parts, 0
        share = size // ranks.size
        for part in range(num_parts):
            count = self.count[part * size : (part + 1) * size]
            num_tokens = divisor(count, int(count.sum()), int(count.any(1).sum()))
            here = slice(part * share, (part + 1) * share)
            after = before + int(self.own.mask[here].sum())
            mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
            among = slice(part * size + mine.start, part * size + mine.stop)
            yield replace(self._rows(among, self.own.rows(here), slice(before, after)), num_tokens=num_tokens[mine])
            before = after

    def signal(self, log_ratio: PerToken) -> PerToken:
        """Each token's advantage: as prepared, or, where the divergence itself is differentiated, its own."""
        return self.divergence.advantage(log_ratio) if self.advantage is None else self.advantage

    def _rows(self, rows: slice, own: Rollout, tokens: slice) -> "Batch":
        hidden = {index: states[tokens] for index, states in self.teachers.hidden.items()}
        top = {index: likeliest.rows(tokens) for index, likeliest in self.teachers.top.items()}
        return replace(
            self,
            own=own,
            rollout=own,
            student=TokenScores(self.student.logp[rows], self.student.entropy[rows]),
            teachers=TeacherScores(self.teachers.logp[:, rows], self.teachers.entropy[:, rows], hidden, top),
            mixture=self.mixture.rows(rows),
            divergence=self.divergence.rows(rows),
            weight=self.weight[rows],
            keep=self.keep[rows],
            count=self.count[rows],
            anchor_logp=None,
            reward=None,
            advantage=None if self.advantage is None else self.advantage[rows],
        )


@runtime_checkable
class Learner(Protocol):
    """A way to learn from a batch."""

    def prepare(self, batch: Batch, progress: float) -> tuple[Batch, dict[str, float]]:
        """The batch, ready to be learned from in parts, and metrics; `progress` in [0, 1] is training's."""
        ...

    def backward(self, batch: Batch) -> dict[str, float]:
        """Adds the gradient of the loss to the student's parameters; returns `loss` and other metrics."""
        ...


@dataclass(frozen=True)
class PolicyGradient:
    """support=sampled: the sampled tokens' log-probs, weighted by their advantage."""

    config: RunConfig
    policy: Policy

    def prepare(self, batch: Batch, progress: float) -> tuple[Batch, dict[str, float]]:
        """Divergence → anchor → credit → reward → baseline → clip → whitening, in this order."""
        config, knobs = self.config, self.config.shaping
        keep, group, student_logp = batch.keep, batch.rollout.group, batch.student.logp
        anchor_logp = student_logp if batch.anchor_logp is None else batch.anchor_logp

        def advantage_of(log_ratio: Tensor) -> Tensor:
            return batch.divergence.advantage(
                shaping.extrapolate(log_ratio, student_logp, anchor_logp, coefficient=knobs.extrapolation)
            )

        signal = batch.mixture.advantage(advantage_of, student_logp, batch.teachers.logp)
        signal = shaping.stay_near(signal, student_logp, anchor_logp, kl_coef=knobs.kl_coef)
        early = shaping.prefix_weight(signal, keep, strength=knobs.prefix_strength)
        advantage = CREDIT[config.credit](signal, keep, config.gamma)
        if batch.reward is not None:
            advantage = shaping.add_reward(advantage, batch.reward, keep, progress, reward_weight=knobs.reward_weight)
        advantage = shaping.subtract_baseline(advantage, keep, group, baseline=knobs.baseline)
        advantage, clipped = shaping.clip(advantage, keep, limit=knobs.advantage_clip)
        advantage, mean, std = whiten(advantage, keep, config.whitening, group)
        metrics = {"whitening/mean": float(mean), "whitening/std": float(std), "shaping/clipped": clipped}
        return replace(batch, advantage=advantage, weight=batch.weight * early), metrics

    def backward(self, batch: Batch) -> dict[str, float]:
        """Of the whole part at once: its loss is a function of [batch, time] scores, so no split into micro-batches
        can change a denominator.
        """
        config = self.config
        several = config.mini_batch_size < config.batch_size
        now = self.policy.scores(batch.rollout) if several else batch.student
        logp, entropy = now.logp.clone().requires_grad_(), now.entropy.clone().requires_grad_()
        assert batch.advantage is not None and batch.num_tokens is not None
        learned = batch.advantage, batch.weight, batch.keep, batch.num_tokens
        if several:
            loss = clipped_policy_gradient(
                logp, batch.student.logp, *learned, clip_low=config.clip.low, clip_high=config.clip.high
            )
        else:
            loss = policy_gradient(logp, *learned)
        loss = loss + entropy_bonus(entropy, batch.count, batch.num_tokens, entropy_coef=config.entropy_coef)
        grad_logp, grad_entropy = torch.autograd.grad(loss, [logp, entropy])
        self.policy.backward(batch.rollout, grad_logp, grad_entropy if config.entropy_coef else None)
        return self.policy.ranks.total({"loss": float(loss.detach())})


@dataclass(frozen=True)
class Exact:
    """support=full or topk: the divergence itself, differentiated."""

    config: RunConfig
    whole: Whole
    support: Support

    def prepare(self, batch: Batch, progress: float) -> tuple[Batch, dict[str, float]]:
        return batch, {}

    def backward(self, batch: Batch) -> dict[str, float]:
        assert batch.num_tokens is not None
        coefficient, num_tokens = self.config.entropy_coef, batch.num_tokens.to(batch.weight)
        weight = torch.where(batch.keep, batch.weight, 0) / num_tokens
        entropy_weight = coefficient * batch.count / num_tokens if coefficient else None
        measured = self.whole.backward(
            batch.rollout,
            batch.teachers,
            batch.mixture,
            batch.divergence,
            support=self.support,
            weight=weight,
            entropy_weight=entropy_weight,
            clamp=self.config.shaping.log_ratio_clamp,
        )
        learned = weight != 0  # a rollout correction may keep a token and weigh it 0
        loss = (torch.where(learned, measured["divergence"], 0) * weight).double().sum()
        if entropy_weight is not None:
            loss = loss - (torch.where(batch.count, measured["student_entropy"], 0) * entropy_weight).double().sum()
        sums = {"loss": float(loss), "tokens": float(learned.sum())}
        sums |= {name: float(torch.where(learned, measured[name], 0).double().sum()) for name in MEASURED}
        sums = self.whole.policy.ranks.total(sums)
        tokens = sums.pop("tokens") or math.nan
        means = {f"support/{shown}": sums[name] / tokens for name, shown in MEASURED.items()}
        # What this support, or no clamp, does not measure is not a number.
        return {"loss": sums["loss"]} | {name: mean for name, mean in means.items() if not math.isnan(mean)}


CREDIT: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "reward_to_go": discounted_return,
    "sequence": lambda signal, mask, gamma: shaping.sequence_return(signal, mask),
}

# What an exact pass measures, and the metric that its mean over the learned tokens is.
MEASURED = {
    "divergence": "exact",
    "clamped": "clamped_mass",
    "student_mass": "student_mass",
    "reference_mass": "reference_mass",
    "overlap": "overlap",
}
