"""What a step computes of a rollout beyond its stages' own functions: the rewards and the reference."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from opd.config.schema import Shaping
from opd.data.batch import Rollout, TeacherScores
from opd.objective import shaping
from opd.objective.mixture import Mixture
from opd.teacher.context import Grades
from opd.teacher.full_distributions import FullDistributions

PerToken = Float[Tensor, "batch time"]
PerResponse = Float[Tensor, " batch"]


@dataclass(frozen=True)
class Rewards:
    """Rewards and prompt weights of graded responses; `needed`: something uses them."""

    needed: bool
    shaping: Shaping

    def __call__(
        self, rollout: Rollout, grades: Grades
    ) -> tuple[PerResponse | None, Float[Tensor, "batch 1"], dict[str, float]]:
        """Each response's reward (its score, less the mean of its prompt's responses if so configured), the weight of
        its prompt, and metrics.
        """
        if not self.needed:
            return None, torch.ones(len(rollout), 1), {}
        graded = grades()
        correct, score = (torch.tensor([getattr(grade, name) for grade in graded]) for name in ("correct", "score"))
        reward, mask = score.float()[:, None], torch.ones(len(correct), 1, dtype=torch.bool)
        reward = shaping.subtract_baseline(reward, mask, rollout.group, baseline=self.shaping.reward_baseline)
        weight = shaping.pass_rate_weight(correct, rollout.group, power=self.shaping.pass_rate_power)
        metrics = {"reward/mean": float(score.float().mean()), "reward/prompt_weight": float(weight.mean())}
        return reward[:, 0], weight[:, None], metrics


def sampled_reference(
    rollout: Rollout, teachers: TeacherScores, mixture: Mixture
) -> tuple[PerToken, PerToken, PerToken | None]:
    """The ensemble's log-probs of the sampled tokens and its entropies (the teachers' mean), no exact KL."""
    return mixture.reference(teachers.logp), mixture.entropy(teachers.entropy), None


@dataclass(frozen=True)
class FullReference:
    """As `sampled_reference`, from full distributions: normalised ensembles, their own entropies, the exact KL."""

    distributions: FullDistributions

    def __call__(
        self, rollout: Rollout, teachers: TeacherScores, mixture: Mixture
    ) -> tuple[PerToken, PerToken, PerToken | None]:
        statistics = self.distributions.statistics(rollout, teachers, mixture)
        return statistics["reference_logp"], statistics["reference_entropy"], statistics["reverse_kl"]
