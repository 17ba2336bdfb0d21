"""Full distributions over a rollout: divergences over the vocabulary, measured and learned from.

Micro-batch by micro-batch, from the student's hidden states and those that the teachers kept, or their likeliest
tokens; see `opd.objective.fused`, which never holds [token, vocabulary].
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from opd.data.batch import Rollout, TeacherScores, TopTokens
from opd.model.forward import MicroBatch, spread, token_index
from opd.model.policy import Policy
from opd.objective.divergence import Chosen, reverse_kl
from opd.objective.fused import Measured, measure
from opd.objective.mixture import Mixture
from opd.objective.support import Support
from opd.objective.table import Table
from opd.teacher.local import LocalTeachers

PerToken = Float[Tensor, "batch time"]

# What a pass measures of each token: all of `Measured` but the loss.
NUMBERS = tuple(field.name for field in fields(Measured) if field.name != "loss")


@dataclass(frozen=True)
class Whole:
    """Student and teachers, for comparing full distributions."""

    policy: Policy
    teachers: LocalTeachers | None  # None where they give likeliest tokens

    @torch.no_grad()
    def statistics(self, rollout: Rollout, scores: TeacherScores, mixture: Mixture) -> dict[str, PerToken]:
        """The sampled tokens' log-probs, entropies and exact KL(student || reference), without a gradient."""
        everywhere = reverse_kl().at(rollout.mask, torch.zeros(rollout.mask.shape))
        options = {"weight": rollout.mask.to(scores.logp.dtype), "entropy_weight": None, "support": None, "clamp": None}
        return self._pass(rollout, scores, mixture, everywhere, with_statistics=True, **options)

    def backward(
        self,
        rollout: Rollout,
        scores: TeacherScores,
        mixture: Mixture,
        divergence: Chosen,
        *,
        support: Support,
        weight: PerToken,
        entropy_weight: PerToken | None,
        clamp: float | None,
    ) -> dict[str, PerToken]:
        """Adds the gradient of Σ weight · D - Σ entropy_weight · H(student) to the student's parameters.

        Tokens without weight are left out. Returns what was measured of the others, NaN elsewhere.
        """
        return self._pass(
            rollout,
            scores,
            mixture,
            divergence,
            support=support,
            weight=weight,
            entropy_weight=entropy_weight,
            clamp=clamp,
            with_statistics=entropy_weight is not None,
        )

    def _pass(
        self,
        rollout: Rollout,
        scores: TeacherScores,
        mixture: Mixture,
        divergence: Chosen,
        *,
        support: Support | None,
        weight: PerToken,
        entropy_weight: PerToken | None,
        clamp: float | None,
        with_statistics: bool,
    ) -> dict[str, PerToken]:
        used = weight != 0 if entropy_weight is None else (weight != 0) | (entropy_weight != 0)
        order, teachers = token_index(rollout.mask), scores.whole
        scorers = [] if self.teachers is None else [self.teachers.scorer(teacher) for teacher in teachers]
        heads = [scorer.full_head() for scorer in scorers]
        flat = torch.full((len(NUMBERS), int(rollout.mask.sum())), torch.nan, dtype=weight.dtype)
        for micro in self.policy.micro_batches(rollout):

            def total(states: Tensor, head: Tensor, micro: MicroBatch = micro) -> Tensor:
                of, found = (
                    _Tokens(micro, states.device),
                    states.sum() * 0,
                )  # without a learned token it still takes part
                for one, where in divergence.parts:
                    here = of(used & where)
                    index = of(order)[here].cpu()
                    measured = measure(
                        states[here],
                        head,
                        [scores.hidden[teacher][index].to(states.device) for teacher in sorted(scores.hidden)],
                        heads,
                        one,
                        weight=of(weight)[here],
                        entropy_weight=None if entropy_weight is None else of(entropy_weight)[here],
                        temperature=self.policy.temperature,
                        teacher_temperature=scorers[0].temperature if scorers else None,
                        tables=[_table(scores.top[teacher].rows(index)) for teacher in sorted(scores.top)],
                        mixture=_of_tokens(mixture, teachers, micro, here),
                        support=support,
                        tokens=micro.tokens.to(states.device)[here],
                        with_statistics=with_statistics,
                        clamp=clamp,
                        chunk_size=self.policy.logit_chunk,
                    )
                    found = found + measured.loss
                    flat[:, index] = torch.stack([getattr(measured, name) for name in NUMBERS]).to(flat)
                return found

            if torch.is_grad_enabled():
                self.policy.learn(micro, total)
            else:
                self.policy.root(micro, total)
        return {name: spread(numbers, rollout.mask) for name, numbers in zip(NUMBERS, flat, strict=True)}


@dataclass(frozen=True)
class _Tokens:
    """Takes a rollout's [batch, time] numbers to the response tokens of a micro-batch, on its device."""

    micro: MicroBatch
    device: torch.device

    def __call__(self, numbers: Tensor) -> Tensor:
        return numbers[self.micro.rows][self.micro.response].to(self.device)


def _table(top: TopTokens) -> Table:
    return Table(top.ids, top.logp)


def _of_tokens(mixture: Mixture, teachers: list[int], micro: MicroBatch, here: Tensor) -> Mixture:
    """The mixture over the teachers that are there, with a weight for each token where responses have their own."""
    weights = mixture.weights[teachers]
    if weights.ndim == 2:
        row = micro.rows[:, None].expand(micro.response.shape)[micro.response]
        weights = weights[:, row[here.cpu()]]
    return Mixture(weights, mixture.space)
