"""Graders, the choices of `grader`, and how they are run.

Responses are hostile text, so graders run in worker processes with a time limit, one answer at a time; `mathematics`
decides most answers without one.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from opd.grading.exact import grade_exactly
from opd.grading.grading import Grade, grade_in_workers, grade_many


@runtime_checkable
class Gradable(Protocol):
    """A problem or a prompt, with its right answer and the node of its grader, as JSON."""

    @property
    def problem(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def grader(self) -> str: ...


@runtime_checkable
class Grader(Protocol):
    """Grades any response to a problem."""

    def __call__(self, problem: Gradable, response: str) -> Grade: ...


# Grades many responses at once: (responses, right answers, timeout) -> grades.
BatchGrader = Callable[..., list[Grade]]


def mathematics(problem: Gradable, response: str, *, timeout: float) -> Grade:
    """Whether the final answer of a response equals the problem's, as `opd.grading.grading` decides."""
    return grade_many([response], [problem.answer], timeout=timeout)[0]


def exact(problem: Gradable, response: str, *, timeout: float) -> Grade:
    """Whether the final answer of a response is the problem's to the letter; see `opd.grading.exact`."""
    return grade_exactly([response], [problem.answer], timeout=timeout)[0]


# Graders that take batches and manage their own workers, by path.
BATCHED: Mapping[str, BatchGrader] = {f"{__name__}.mathematics": grade_many, f"{__name__}.exact": grade_exactly}
MATHEMATICS = json.dumps({"_target_": f"{__name__}.mathematics"})


def grade(problems: Sequence[Gradable], responses: Sequence[str], *, timeout: float) -> list[Grade]:
    """Grade each response by its problem's grader. No response can raise, hang or affect another's grade.

    An answer that takes its grader more than `timeout` seconds is graded as wrong, with reason "timeout".

    Raises:
        UserError: where no worker can be started.
    """
    by_grader: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        by_grader.setdefault(problem.grader, []).append(index)
    grades: dict[int, Grade] = {}
    for node, own in by_grader.items():
        graded = _grade_by(json.loads(node), [problems[i] for i in own], [responses[i] for i in own], timeout)
        grades |= dict(zip(own, graded, strict=True))
    return [grades[index] for index in range(len(problems))]


def _grade_by(
    node: dict[str, Any], problems: Sequence[Gradable], responses: Sequence[str], timeout: float
) -> list[Grade]:
    if (batched := BATCHED.get(node["_target_"])) is not None:
        return batched(responses, [problem.answer for problem in problems], timeout=timeout)
    knobs = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    common = {"grader": node["_target_"], "knobs": knobs, "path": sys.path}
    requests = [
        json.dumps({**common, "problem": problem.problem, "answer": problem.answer, "response": response})
        for problem, response in zip(problems, responses, strict=True)
    ]
    verdicts = grade_in_workers(requests, timeout)
    return [verdicts[request] for request in requests]
