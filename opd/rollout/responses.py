"""Who writes the tokens that are learned from: the choices of `responses`."""

from collections.abc import Sequence
from dataclasses import dataclass

from opd.data.batch import Prompt, Rollout, Sampling
from opd.rollout.protocol import Responses, Sampler


@dataclass(frozen=True)
class Student(Responses):
    """The student's own samples."""

    sampler: Sampler

    def draw(self, prompts: Sequence[Prompt], sampling: Sampling, *, key: tuple[int, ...]) -> Rollout:
        return self.sampler.sample(prompts, sampling, key=key)


def student(*, sampler: Sampler) -> Responses:
    """The student samples its own responses: on-policy distillation. Adventures section 2."""
    return Student(sampler)
