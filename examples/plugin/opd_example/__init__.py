"""A plug-in with one method for each group, by the contract that the project's own have; each is small on purpose.

python -m opd.train plugins=[opd_example] divergence=chi_squared filter=unsure +signal.brevity=0.1
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opd.data.batch import Prompt, Rollout, Sampling
from opd.data.environment import Message
from opd.data.problem import Problem
from opd.grading.grading import Grade
from opd.objective.divergence import Divergence
from opd.objective.filter import Filtered, TokenSignals
from opd.objective.mixture import Mixture, Rows, ensemble
from opd.objective.support import Support
from opd.rollout.protocol import Responses, Sampler
from opd.step.batch import Batch
from opd.step.terms import Advantage, Loss, term
from opd.teacher.alignment import Alignment, Identity
from opd.teacher.context import Context, Grades, View, after

PerToken = Float[Tensor, "batch time"]
Mask = Bool[Tensor, "batch time"]


def chi_squared() -> Divergence:
    """Pearson's χ², f(r) = (r - 1)^2; weight 2 (1 - r)."""
    return Divergence(generator=lambda u: torch.expm1(u) ** 2, slope=lambda u: 2 * torch.expm1(u))


def likeliest(*, k: Annotated[int, Ge(1)]) -> Support:
    """The teacher's `k` likeliest tokens, the rest of the mass of each as one more."""
    return Support("topk", k, "teacher", "bucket")


@ensemble(at_least=1)
def newest(num_teachers: int, progress: float | int, rows: Rows | None, *, last: Annotated[int, Ge(1)]) -> Mixture:
    """The mean of the `last` teachers of the ladder, and of all where there are fewer."""
    weights = torch.arange(num_teachers) >= num_teachers - last
    return Mixture(weights / weights.sum(), "probability")


def unsure(
    signals: TokenSignals,
    mask: Mask,
    group: Int[Tensor, " batch"],
    gather: Callable | None = None,
    *,
    entropy: Annotated[float | int, Ge(0)],
) -> Filtered:
    """Keeps tokens at which the student's entropy is at least `entropy` nats: no percentiles."""
    keep = mask & (signals.student_entropy >= entropy)
    return Filtered(keep=keep, count=mask, inside=keep)


def softened(
    student_logp: PerToken, rollout_logp: PerToken, mask: Mask, *, power: Annotated[float | int, Ge(0), Le(1)]
) -> tuple[PerToken, Mask]:
    """Weight ρ^power: no bounds."""
    ratio = torch.where(mask, student_logp - rollout_logp, 0).detach()
    return torch.where(mask, (power * ratio).exp(), 0), mask


def constant(
    count: Mask, num_tokens: float | int, num_sequences: float | int, *, length: Annotated[int, Ge(1)]
) -> Float[Tensor, "batch 1"]:
    """Every token's loss divided by `length` a response, however long the responses are."""
    return torch.full((len(count), 1), max(1.0, length * float(num_sequences)), dtype=torch.float64)


class _Started(Responses):
    def __init__(self, sampler: Sampler, given: int):
        self.sampler, self.given = sampler, given

    def draw(self, prompts: Sequence[Prompt], sampling: Sampling, *, key: tuple[int, ...]) -> Rollout:
        rollout = self.sampler.sample(prompts, sampling, key=key)
        late = torch.arange(rollout.mask.shape[1]) >= self.given
        return replace(rollout, learned=rollout.learned & late)


def later(*, sampler: Sampler, given: Annotated[int, Ge(0)]) -> Responses:
    """The student's own samples, of which the first `given` tokens get no signal."""
    return _Started(sampler, given)


class _Again:
    def __init__(self, text: str):
        self.text, self.max_turns = text, 2

    def start(self, prompts: Sequence[Any]) -> list[list[Message]]:
        return [[{"role": "user", "content": prompt.problem}] for prompt in prompts]

    def reply(self, messages: Sequence[Message], turn: int) -> list[Message] | None:
        return [{"role": "user", "content": self.text}]


def again(*, text: str) -> _Again:
    """Says `text` after the model's first turn, which gets a second one."""
    return _Again(text)


class _Twice(Context):
    def view(self, prompts: Sequence[Prompt], rollout: Rollout, grades: Grades) -> list[View]:
        prompt, mask = (torch.cat([each, each], 1) for each in (rollout.prompt, rollout.prompt_mask))
        order = mask.to(torch.uint8).sort(dim=1, stable=True).indices  # padding on the left
        prompt, mask = prompt.gather(1, order), mask.gather(1, order)
        return [View(prompt, mask, after(mask, rollout.mask))]


def twice() -> Context:
    """The teacher reads the problem twice."""
    return _Twice()


def as_it_is() -> Alignment:
    """Each token on itself."""
    return Identity()


def last_digit(problem: Any, response: str) -> Grade:
    """Half of a point for the right last digit, all of it for the right answer."""
    said = response.rpartition("####")[2].strip()
    right, near = said == problem.answer, said[-1:] == problem.answer[-1:]
    return Grade(right, said or None, "right" if right else "near" if near else "wrong", 1.0 if right else near / 2)


def counting(*, num: Annotated[int, Gt(0)]) -> list[Problem]:
    """1+1=, 1+2=, …: `num` problems."""
    return [Problem(f"one-and-{n}", f"1+{n}=", str(1 + n), "addition") for n in range(1, num + 1)]


@term(constant=True)
def brevity(batch: Batch) -> Advantage:
    """-(length / longest of the batch), of each response."""
    length = batch.rollout.mask.sum(1).to(batch.student.logp)
    return Advantage(-length / length.max().clamp(min=1))


@term()
def surprise(batch: Batch) -> Loss:
    """log π(token)^2 of every counted token."""
    return Loss(batch.student.logp**2, batch.count)
