"""From a scored batch to gradients: on the sampled tokens by policy gradient, or through whole distributions.

A learner prepares a batch whole, because baselines, whitening and counts are the batch's, and then learns from it part
by part, an optimizer update each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opd.batch import Rollout, TeacherScores, TokenScores
from opd.config import RunConfig
from opd.engine.policy import Policy
from opd.engine.whole import Whole
from opd.objective import shaping
from opd.objective.advantage import discounted_return, whiten
from opd.objective.divergence import Chosen
from opd.objective.loss import clipped_policy_gradient, entropy_bonus, policy_gradient
from opd.objective.mixture import Mixture
from opd.objective.support import Support

PerToken = Float[Tensor, "batch time"]


@dataclass(frozen=True)
class Batch:
    """A step's responses and what was found of them. `divergence` is each token's; `keep` gets a gradient, `count`
    stays in the denominator; `anchor_logp` and `reward` are None where nothing asks for them.
    """

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

    def parts(self, num_prompts: int) -> "Iterator[Batch]":
        """The batch in parts of so many prompts, or itself."""
        samples = len(self.rollout) // (int(self.rollout.group[-1]) + 1)
        size = num_prompts * samples
        if size >= len(self.rollout):
            yield self
            return
        before = 0
        for start in range(0, len(self.rollout), size):
            part = self._rows(slice(start, start + size), before)
            before += int(part.rollout.mask.sum())
            yield part

    def _rows(self, rows: slice, before: int) -> "Batch":
        tokens = slice(before, before + int(self.rollout.mask[rows].sum()))
        teachers = TeacherScores(
            self.teachers.logp[:, rows],
            self.teachers.entropy[:, rows],
            {index: hidden[tokens] for index, hidden in self.teachers.hidden.items()},
        )
        return replace(
            self,
            rollout=self.rollout.rows(rows),
            student=TokenScores(self.student.logp[rows], self.student.entropy[rows]),
            teachers=teachers,
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
    divisor: Callable[..., Tensor]

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
        num_tokens = _divisor(self.divisor, batch)
        assert batch.advantage is not None
        learned = batch.advantage, batch.weight, batch.keep, num_tokens
        if several:
            loss = clipped_policy_gradient(
                logp, batch.student.logp, *learned, clip_low=config.clip.low, clip_high=config.clip.high
            )
        else:
            loss = policy_gradient(logp, *learned)
        loss = loss + entropy_bonus(entropy, batch.count, num_tokens, entropy_coef=config.entropy_coef)
        grad_logp, grad_entropy = torch.autograd.grad(loss, [logp, entropy])
        self.policy.backward(batch.rollout, grad_logp, grad_entropy if config.entropy_coef else None)
        return {"loss": float(loss.detach())}


@dataclass(frozen=True)
class Exact:
    """support=full or topk: the divergence itself, differentiated."""

    config: RunConfig
    whole: Whole
    support: Support
    divisor: Callable[..., Tensor]

    def prepare(self, batch: Batch, progress: float) -> tuple[Batch, dict[str, float]]:
        return batch, {}

    def backward(self, batch: Batch) -> dict[str, float]:
        num_tokens, coefficient = _divisor(self.divisor, batch).float(), self.config.entropy_coef
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
        names = {"divergence": "exact", "clamped": "clamped_mass"}
        means = {f"support/{names.get(n, n)}": measured[n][learned].double().mean() for n in MEASURED}
        return {"loss": float(loss)} | {name: float(mean) for name, mean in means.items() if not mean.isnan()}


CREDIT: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "reward_to_go": discounted_return,
    "sequence": lambda signal, mask, gamma: shaping.sequence_return(signal, mask),
}

# Means over the learned tokens that an exact pass reports, where it has them.
MEASURED = ("divergence", "clamped", "student_mass", "reference_mass", "overlap")


def _divisor(divisor: Callable[..., Tensor], batch: Batch) -> Tensor:
    return divisor(batch.count, int(batch.count.sum()), int(batch.count.any(1).sum()))
