"""What several ranks found is, joined, what one would have found: rows in the order in which prompts were drawn."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opd.data.batch import TeacherScores, TokenScores
from opd.ranks.dist import Ranks
from opd.step.scored import Scored, own_positions
from tests.unit.small import rollout_of

PROMPTS, SAMPLES = 8, 3


@dataclass(frozen=True)
class Threads(Ranks):
    """Ranks that are threads of this process; `group` is the barrier where they meet and the table they meet at."""

    def gather(self, thing: Any) -> list[Any]:
        barrier, table = self.group
        table[self.rank] = thing
        barrier.wait()
        found = list(table)
        barrier.wait()
        return found

    def concat(self, rows: Tensor, dim: int = 0) -> Tensor:
        return torch.cat(self.gather(rows), dim)


def on_threads(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    meeting = threading.Barrier(size, timeout=60.0), [None] * size
    ranks = [Threads(rank, size, torch.device("cpu"), grouped=False, group=meeting) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, ranks))


def scored() -> Scored:
    """Of all prompts of a step, `SAMPLES` responses each; no two numbers are equal."""
    rows = PROMPTS * SAMPLES
    rollout = rollout_of([[2]] * rows, [[*range(3, 4 + row % 5)] for row in range(rows)])
    rollout = replace(
        rollout,
        group=torch.arange(PROMPTS).repeat_interleave(SAMPLES),
        truncated=torch.arange(rows) % 2 == 0,
        rollout_logp=torch.randn(rollout.tokens.shape),
    )
    numbers = torch.randn(9, *rollout.tokens.shape)
    return Scored(
        rollout=rollout,
        student=TokenScores(numbers[0], numbers[1]),
        teachers=TeacherScores(numbers[2:4], numbers[4:6], {}),
        reference_logp=numbers[6],
        reference_entropy=numbers[7],
        exact_kl=numbers[8],
        anchor_logp=None,
        reward=torch.randn(rows),
        prompt_weight=torch.randn(rows, 1),
    )


def of_prompts(whole: Scored, positions: list[int]) -> Scored:
    """A rank's part: the responses to those prompts, which it counts from 0."""
    rows = torch.tensor([position * SAMPLES + sample for position in positions for sample in range(SAMPLES)])
    own = {name: value[rows] for name, value in vars(whole.rollout).items()}
    own["group"] = torch.arange(len(positions)).repeat_interleave(SAMPLES)
    student, teachers = whole.student, whole.teachers
    assert whole.exact_kl is not None and whole.reward is not None
    return Scored(
        rollout=type(whole.rollout)(**own),
        student=TokenScores(student.logp[rows], student.entropy[rows]),
        teachers=TeacherScores(teachers.logp[:, rows], teachers.entropy[:, rows], {}),
        reference_logp=whole.reference_logp[rows],
        reference_entropy=whole.reference_entropy[rows],
        exact_kl=whole.exact_kl[rows],
        anchor_logp=None,
        reward=whole.reward[rows],
        prompt_weight=whole.prompt_weight[rows],
    )


@pytest.mark.parametrize(("size", "num_parts"), [(2, 1), (2, 2), (4, 2), (2, 4)])
def test_gathered_rows_are_in_prompt_order(size: int, num_parts: int):
    torch.manual_seed(0)
    whole = scored()

    def work(ranks: Ranks) -> tuple[list[int], Scored]:
        positions = own_positions(PROMPTS, num_parts, ranks)
        return positions, of_prompts(whole, positions).gathered(ranks, positions)

    found = on_threads(size, work)
    shares = [positions for positions, _ in found]
    assert sorted(position for positions in shares for position in positions) == list(range(PROMPTS))
    each = PROMPTS // num_parts
    for positions in shares:  # as many of each part
        assert [sum(p // each == part for p in positions) for part in range(num_parts)] == [each // size] * num_parts
    for _, joined in found:
        for name in ("tokens", "mask", "rollout_logp", "group", "truncated"):
            assert torch.equal(getattr(joined.rollout, name), getattr(whole.rollout, name)), name
        for name in ("reference_logp", "reference_entropy", "exact_kl", "reward", "prompt_weight"):
            assert torch.equal(getattr(joined, name), getattr(whole, name)), name
        for name in ("logp", "entropy"):
            assert torch.equal(getattr(joined.student, name), getattr(whole.student, name))
            assert torch.equal(getattr(joined.teachers, name), getattr(whole.teachers, name))
        assert joined.anchor_logp is None
