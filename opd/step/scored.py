"""Responses and what student, teachers, anchor and grader say of them: one rank's, and all ranks' as one batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.data.batch import Rollout, TeacherScores, TokenScores
from opd.ranks.dist import Ranks

PerToken = Float[Tensor, "batch time"]


@dataclass(frozen=True)
class Scored:
    """Scores of one rank's responses, or of all of them; None where nothing needs it."""

    rollout: Rollout
    student: TokenScores
    teachers: TeacherScores
    reference_logp: PerToken
    reference_entropy: PerToken
    exact_kl: PerToken | None
    anchor_logp: PerToken | None
    reward: Float[Tensor, " batch"] | None
    prompt_weight: Float[Tensor, "batch 1"]

    def joined(self, ranks: Ranks, positions: Sequence[int]) -> "Scored":
        """All ranks' scores as one batch, its prompts in the order they were drawn; hidden states stay this rank's.

        `positions` are those of this rank's prompts among the step's. What is joined has no prompts.
        """
        if ranks.size == 1:
            return self
        rollout = replace(self.rollout, group=torch.tensor(positions)[self.rollout.group])
        order = ranks.concat(rollout.group).argsort(stable=True)

        def all_of(values: Tensor | None) -> Tensor | None:
            return None if values is None else ranks.concat(values)[order]

        def every(values: Tensor) -> Tensor:
            return ranks.concat(values)[order]

        def each(values: Tensor) -> Tensor:
            return torch.stack([every(one) for one in values])

        fields = {name: every(value) for name, value in vars(rollout).items() if name not in ("prompt", "prompt_mask")}
        none = fields["tokens"][:, :0]
        return Scored(
            rollout=Rollout(prompt=none, prompt_mask=none.bool(), **fields),
            student=TokenScores(every(self.student.logp), every(self.student.entropy)),
            teachers=replace(self.teachers, logp=each(self.teachers.logp), entropy=each(self.teachers.entropy)),
            reference_logp=every(self.reference_logp),
            reference_entropy=every(self.reference_entropy),
            exact_kl=all_of(self.exact_kl),
            anchor_logp=all_of(self.anchor_logp),
            reward=all_of(self.reward),
            prompt_weight=every(self.prompt_weight),
        )


def own_positions(num_prompts: int, num_parts: int, ranks: Ranks) -> list[int]:
    """This rank's prompts of a step, by position: an equal share of each of the parts that are learned one by one."""
    size = num_prompts // num_parts
    share = size // ranks.size
    start = ranks.rank * share
    return [part * size + position for part in range(num_parts) for position in range(start, start + share)]


def routed_rows(routed: Sequence[int] | None, group: Int[Tensor, " batch"]) -> Int[Tensor, " batch"] | None:
    """Each response's teacher, where prompts are routed to one."""
    return None if routed is None else torch.tensor(routed)[group]
