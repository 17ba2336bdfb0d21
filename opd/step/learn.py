"""From a scored batch to gradients: its terms' policy gradient and losses, and the divergence over the vocabulary.

The batch is prepared as one, because baselines, whitening and counts are the batch's, and then learned part by part, an
optimizer update each.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from opd.config.schema import RunConfig
from opd.data.batch import TokenScores
from opd.model.policy import Policy
from opd.objective import shaping
from opd.objective.advantage import discounted_return, whiten
from opd.objective.loss import clipped_policy_gradient, policy_gradient, summed
from opd.objective.support import Support
from opd.step.batch import Batch
from opd.step.terms import Advantage, Loss, Term
from opd.teacher.full_distributions import FullDistributions

Weight = float | Sequence[float]  # of a term: one, or its first and last along training
PerToken = Float[Tensor, "batch time"]


@runtime_checkable
class Learner(Protocol):
    """A way to learn from a batch."""

    def prepare(self, batch: Batch, progress: float) -> tuple[Batch, dict[str, float]]:
        """The batch, prepared for `backward` in parts, and metrics; `progress` in [0, 1] is training's."""
        ...

    def backward(self, batch: Batch) -> dict[str, float]:
        """Adds the gradient of the loss to the student's parameters; returns `loss` and other metrics."""
        ...


@dataclass(frozen=True)
class Signal(Learner):
    """Learns the terms of `signal`, `terms[name]` each with `weights[name]`.

    Advantages become one policy gradient; losses are added to it. `exact` is the divergence where it is a sum over the
    vocabulary, with the weight of the term `divergence`, which is then not among `terms`.
    """

    config: RunConfig
    policy: Policy
    terms: Mapping[str, Term]
    weights: Mapping[str, Weight]
    exact: "Exact | None"

    def prepare(self, batch: Batch, progress: float) -> tuple[Batch, dict[str, float]]:
        """Terms of tokens → credit → terms of responses → baseline → clip → whitening, in this order."""
        weights = {name: weight_at(weight, progress) for name, weight in self.weights.items()}
        batch = replace(batch, weights=weights)
        config, knobs, keep = self.config, self.config.shaping, batch.keep
        advantages = [(weight, term(batch).values) for weight, term in self._weighted_terms(Advantage, weights)]
        if not advantages:
            return batch, {}
        per_token = [weight * values for weight, values in advantages if values.ndim == 2]
        signal = sum(per_token, start=torch.zeros_like(batch.student.logp))
        early = shaping.prefix_weight(signal, keep, strength=knobs.prefix_strength)
        advantage = CREDIT[config.credit](signal, keep, config.gamma)
        for weight, values in advantages:
            if values.ndim == 1:
                advantage = shaping.add_reward(advantage, values, keep, weight=weight)
        advantage = shaping.subtract_baseline(advantage, keep, batch.rollout.group, baseline=knobs.baseline)
        advantage, clipped = shaping.clip(advantage, keep, limit=knobs.advantage_clip)
        advantage, mean, std = whiten(advantage, keep, config.whitening, batch.rollout.group)
        metrics = {"whitening/mean": float(mean), "whitening/std": float(std), "shaping/clipped": clipped}
        return replace(batch, advantage=advantage, weight=batch.weight * early), metrics

    def backward(self, batch: Batch) -> dict[str, float]:
        """Adds the gradients of the policy gradient and the losses, then that of the divergence over the vocabulary.

        The first are functions of [batch, time] scores, so no split into micro-batches can change a denominator.
        """
        loss, grad_logp, grad_entropy = self._score_gradients(batch)
        ranks = self.policy.ranks
        metrics = ranks.sum({"loss": loss})
        if self.exact is None or ranks.any(bool(grad_logp.any())):
            entropy_gradient = grad_entropy if self.exact is None and grad_entropy.any() else None
            self.policy.backward(batch.rollout, grad_logp, entropy_gradient)
        if self.exact is None:
            return metrics
        # The pass over the vocabulary has each token's distribution at hand, and takes the entropy's gradient too.
        entropy_weight = -grad_entropy if self._weighted_terms(Loss, batch.weights) else None
        measured = self.exact.backward(batch, batch.weights.get("divergence", 0.0), entropy_weight)
        return measured | {"loss": metrics["loss"] + measured["loss"]}

    def _score_gradients(self, batch: Batch) -> tuple[float, PerToken, PerToken]:
        """The policy gradient's and the losses' sum, and its derivatives by the tokens' log-probs and entropies."""
        assert batch.num_tokens is not None
        config, losses = self.config, self._weighted_terms(Loss, batch.weights)
        if batch.advantage is None and not losses:
            nothing = torch.zeros_like(batch.student.logp)
            return 0.0, nothing, nothing
        multiple = config.mini_batch_size < config.batch_size
        now = self.policy.scores(batch.rollout) if multiple else batch.student
        logp, entropy = now.logp.clone().requires_grad_(), now.entropy.clone().requires_grad_()
        loss = torch.zeros((), dtype=logp.dtype)
        if batch.advantage is not None:
            learned = batch.advantage, batch.weight, batch.keep, batch.num_tokens
            if multiple:
                bounds = {"clip_low": config.clip.low, "clip_high": config.clip.high}
                loss = loss + clipped_policy_gradient(logp, batch.student.logp, *learned, **bounds)
            else:
                loss = loss + policy_gradient(logp, *learned)
        differentiable = replace(batch, student=TokenScores(logp, entropy))
        for weight, term in losses:
            result = term(differentiable)
            assert isinstance(result, Loss)
            loss = loss + weight * summed(result.values, result.over, batch.num_tokens)
        grad_logp, grad_entropy = torch.autograd.grad(loss, [logp, entropy], materialize_grads=True)
        return float(loss.detach()), grad_logp, grad_entropy

    def _weighted_terms(self, kind: type, weights: Mapping[str, float]) -> list[tuple[float, Term]]:
        # By name: a record may list them in another order, and sums round by their order.
        named = sorted(self.terms.items())
        return [(weights[name], term) for name, term in named if term.kind is kind and weights[name]]


@dataclass(frozen=True)
class Exact:
    """support=full or topk: the divergence itself, differentiated."""

    config: RunConfig
    distributions: FullDistributions
    support: Support

    def backward(self, batch: Batch, coefficient: float, entropy_weight: PerToken | None) -> dict[str, float]:
        """Adds the gradient of Σ coefficient · weight · D / num_tokens - Σ entropy_weight · H(student) to the student's
        parameters; returns the first sum as `loss`, and metrics.
        """
        assert batch.num_tokens is not None
        num_tokens = batch.num_tokens.to(batch.weight)
        weight = coefficient * torch.where(batch.keep, batch.weight, 0) / num_tokens
        measured = self.distributions.measure(
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
        sums = {"loss": float(loss), "tokens": float(learned.sum())}
        sums |= {name: float(torch.where(learned, measured[name], 0).double().sum()) for name in SUPPORT_METRICS}
        sums = self.distributions.policy.ranks.sum(sums)
        tokens = sums.pop("tokens") or math.nan
        means = {f"support/{metric}": sums[name] / tokens for name, metric in SUPPORT_METRICS.items()}
        # What this support, or no clamp, does not measure is not a number.
        return {"loss": sums["loss"]} | {name: mean for name, mean in means.items() if not math.isnan(mean)}


def weight_at(weight: Weight, progress: float) -> float:
    """A term's weight at a point of training, `progress` in [0, 1]."""
    first, last = weight if isinstance(weight, Sequence) else (weight, weight)
    return first + (last - first) * progress


CREDIT: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "reward_to_go": discounted_return,
    "sequence": lambda signal, mask, gamma: shaping.sequence_return(signal, mask),
}

# What an exact pass measures, and the metric that its mean over the learned tokens is.
SUPPORT_METRICS = {
    "divergence": "exact",
    "clamped": "clamped_mass",
    "student_mass": "student_mass",
    "reference_mass": "reference_mass",
    "overlap": "overlap",
}
