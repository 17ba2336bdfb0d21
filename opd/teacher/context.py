"""What the teacher reads that the student does not: the choices of `context`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from opd.data.batch import Prompt, Rollout
from opd.grading.grading import Grade

# The responses' grades, made when first called for.
Grades = Callable[[], Sequence[Grade]]


@dataclass(frozen=True)
class View:
    """A teacher's sequence for each response: `prompt`, padded on the left, then what follows.

    `place` is where each token of the response lies in its sequence, counted from the sequence's first token; 0 where
    the response has none.
    """

    prompt: Int[Tensor, "batch prompt_time"]
    prompt_mask: Bool[Tensor, "batch prompt_time"]
    place: Int[Tensor, "batch time"]

    def of(self, rollout: Rollout) -> Rollout:
        """The responses with these prompts before them."""
        return replace(rollout, prompt=self.prompt, prompt_mask=self.prompt_mask)


@runtime_checkable
class Context(Protocol):
    """What the teachers read before a response."""

    def view(self, prompts: Sequence[Prompt], rollout: Rollout, grades: Grades) -> list[View]:
        """The teachers' sequences for the responses: one or more for each.

        `rollout` has the prompts without what the student alone reads; `rollout.group` are places in `prompts`.
        """
        ...


class Same(Context):
    """What the student read."""

    def view(self, prompts: Sequence[Prompt], rollout: Rollout, grades: Grades) -> list[View]:
        return [View(rollout.prompt, rollout.prompt_mask, after(rollout.prompt_mask, rollout.mask))]


def same() -> Context:
    """The teacher reads what the student read, and nothing else. Adventures section 2."""
    return Same()


def after(
    prompt_mask: Bool[Tensor, "batch prompt_time"], mask: Bool[Tensor, "batch time"]
) -> Int[Tensor, "batch time"]:
    """The places of response tokens that follow their prompt at once."""
    return torch.where(mask, prompt_mask.sum(1, keepdim=True) + torch.arange(mask.shape[1]), 0)
