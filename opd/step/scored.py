"""Responses with the scores of student, teachers, anchor and grader: one rank's, and all ranks' as one batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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

    def gathered(self, ranks: Ranks, positions: Sequence[int]) -> "Scored":
        """All ranks' scores as one batch, its prompts in the order they were drawn; hidden states stay this rank's.

        `positions` are those of this rank's prompts among the step's. The result has no prompts.
        """
        if ranks.size == 1:
            return self
        rollout = replace(self.rollout, group=torch.tensor(positions)[self.rollout.group])
        order = ranks.concat(rollout.group).argsort(stable=True)

        def gather(values: Tensor, dim: int = 0) -> Tensor:
            return ranks.concat(values, dim).index_select(dim, order)

        def gather_all(fields: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
            kept = {name: values for name, values in fields.items() if name not in left_out}
            return {name: None if values is None else gather(values) for name, values in kept.items()}

        fields = gather_all(vars(rollout), "prompt", "prompt_mask")
        empty = fields["tokens"][:, :0]
        return Scored(
            rollout=Rollout(prompt=empty, prompt_mask=empty.bool(), **fields),
            student=TokenScores(**gather_all(vars(self.student))),
            teachers=replace(
                self.teachers, logp=gather(self.teachers.logp, 1), entropy=gather(self.teachers.entropy, 1)
            ),
            **gather_all(vars(self), "rollout", "student", "teachers"),
        )


def own_positions(num_prompts: int, num_parts: int, ranks: Ranks) -> list[int]:
    """This rank's prompts of a step, by position: an equal share of each of the parts that are learned one by one."""
    size = num_prompts // num_parts
    share = size // ranks.size
    start = ranks.rank * share
    return [part * size + position for part in range(num_parts) for position in range(start, start + share)]


def response_teachers(routed: Sequence[int] | None, group: Int[Tensor, " batch"]) -> Int[Tensor, " batch"] | None:
    """Each response's teacher, where prompts are routed to one."""
    return None if routed is None else torch.tensor(routed)[group]
