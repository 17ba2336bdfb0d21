"""Divergences over the full vocabulary at each token of a rollout, and their gradients.

Micro-batch by micro-batch, from the student's hidden states and those that the teachers kept, or their likeliest
tokens; see `opd.objective.fused`, which never holds [token, vocabulary].
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from opd.data.batch import Rollout, TeacherScores
from opd.model.forward import MicroBatch, spread, token_index
from opd.model.policy import Policy
from opd.objective import fused
from opd.objective.divergence import Chosen, reverse_kl
from opd.objective.head import Head
from opd.objective.mixture import Mixture
from opd.objective.support import Support
from opd.objective.table import Table
from opd.teacher.local import LocalTeachers

PerToken = Float[Tensor, "batch time"]

# What a pass measures of each token: all of `Measured` but the loss.
NUMBERS = tuple(field.name for field in fields(fused.Measured) if field.name != "loss")


@dataclass(frozen=True)
class FullDistributions:
    """Student and teachers, for comparing full distributions."""

    policy: Policy
    teachers: LocalTeachers | None  # None if they give likeliest tokens

    @torch.no_grad()
    def statistics(self, rollout: Rollout, scores: TeacherScores, mixture: Mixture) -> dict[str, PerToken]:
        """The sampled tokens' log-probs, entropies and exact KL(student || reference), without a gradient."""
        divergence = reverse_kl().at(rollout.mask, torch.zeros(rollout.mask.shape))
        options = {"weight": rollout.mask.to(scores.logp.dtype), "entropy_weight": None, "support": None, "clamp": None}
        return self.measure(rollout, scores, mixture, divergence, with_statistics=True, **options)

    def measure(
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
        with_statistics: bool = False,
    ) -> dict[str, PerToken]:
        """Measures each token with a weight, NaN elsewhere; see `opd.objective.fused.measure`.

        Unless autograd is off, adds the gradient of Σ weight · D - Σ entropy_weight · H(student) to the student's
        parameters.
        """
        used = weight != 0 if entropy_weight is None else (weight != 0) | (entropy_weight != 0)
        order, teachers = token_index(rollout.mask), scores.teachers_with_distributions
        scorers = [] if self.teachers is None else [self.teachers.scorer(teacher) for teacher in teachers]
        heads = [scorer.full_head() for scorer in scorers]
        flat = torch.full((len(NUMBERS), int(rollout.mask.sum())), torch.nan, dtype=weight.dtype)
        for micro in self.policy.micro_batches(rollout):

            def total(states: Tensor, head: Head, micro: MicroBatch = micro) -> Tensor:
                def of(numbers: Tensor) -> Tensor:
                    return numbers[micro.rows][micro.response].to(states.device)

                loss = states.sum() * 0  # FSDP needs a graph even without a learned token
                for part, where in divergence.parts:
                    here = of(used & where)
                    index = of(order)[here].cpu()
                    likeliest = [scores.top[teacher].rows(index) for teacher in sorted(scores.top)]
                    measured = fused.measure(
                        states[here],
                        head,
                        [scores.hidden[teacher][index].to(states.device) for teacher in sorted(scores.hidden)],
                        heads,
                        part,
                        weight=of(weight)[here],
                        entropy_weight=None if entropy_weight is None else of(entropy_weight)[here],
                        temperature=self.policy.temperature,
                        teacher_temperature=scorers[0].temperature if scorers else None,
                        tables=[Table(top.ids, top.logp) for top in likeliest],
                        mixture=_of_tokens(mixture, teachers, micro, here),
                        support=support,
                        tokens=micro.tokens.to(states.device)[here],
                        with_statistics=with_statistics,
                        clamp=clamp,
                        chunk_size=self.policy.logit_chunk,
                    )
                    loss = loss + measured.loss
                    flat[:, index] = torch.stack([getattr(measured, name) for name in NUMBERS]).to(flat)
                return loss

            if torch.is_grad_enabled():
                self.policy.learn(micro, total)
            else:
                self.policy.root(micro, total)
        return {name: spread(numbers, rollout.mask) for name, numbers in zip(NUMBERS, flat, strict=True)}


def _of_tokens(mixture: Mixture, teachers: list[int], micro: MicroBatch, here: Tensor) -> Mixture:
    """The mixture over the teachers that are there, with a weight for each token where responses have their own."""
    weights = mixture.weights[teachers]
    if weights.ndim == 2:
        row = micro.rows[:, None].expand(micro.response.shape)[micro.response]
        weights = weights[:, row[here.cpu()]]
    return Mixture(weights, mixture.space)
