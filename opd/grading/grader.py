"""What says that an answer is right: the choices of `grader`, and how they are run.

Responses are hostile text, so graders run in worker processes with a time limit, one answer at a time; mathematics
settles most answers without one.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from opd.grading.grading import Grade, grade_many, in_workers


@runtime_checkable
class Asked(Protocol):
    """A problem or a prompt, with its right answer and the node of its grader, as JSON."""

    @property
    def problem(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def grader(self) -> str: ...


@runtime_checkable
class Grader(Protocol):
    """Given a problem and any response, says how much of it is right."""

    def __call__(self, problem: Asked, response: str) -> Grade: ...


# A grader that grades many responses at once: (responses, right answers, timeout) -> grades.
Many = Callable[..., list[Grade]]


def mathematics(problem: Asked, response: str, *, timeout: float) -> Grade:
    """Whether the final answer of a response equals the problem's, as `opd.grading.grading` decides."""
    return grade_many([response], [problem.answer], timeout=timeout)[0]


# Graders that run by themselves, by path.
BY_THEMSELVES: Mapping[str, Many] = {f"{__name__}.mathematics": grade_many}
MATHEMATICS = json.dumps({"_target_": f"{__name__}.mathematics"})


def grade(problems: Sequence[Asked], responses: Sequence[str], *, timeout: float) -> list[Grade]:
    """Each response's grade by its problem's grader. No response raises, hangs or disturbs another's grade.

    A grader may take `timeout` seconds for one answer; more is graded as wrong, with reason "timeout".

    Raises:
        UserError: where no worker can be started.
    """
    places: dict[str, list[int]] = {}
    for place, problem in enumerate(problems):
        places.setdefault(problem.grader, []).append(place)
    grades: dict[int, Grade] = {}
    for node, own in places.items():
        found = _grade_alike(json.loads(node), [problems[i] for i in own], [responses[i] for i in own], timeout)
        grades |= dict(zip(own, found, strict=True))
    return [grades[place] for place in range(len(problems))]


def _grade_alike(
    node: dict[str, Any], problems: Sequence[Asked], responses: Sequence[str], timeout: float
) -> list[Grade]:
    if (many := BY_THEMSELVES.get(node["_target_"])) is not None:
        return many(responses, [problem.answer for problem in problems], timeout=timeout)
    knobs = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    common = {"grader": node["_target_"], "knobs": knobs, "path": sys.path}
    requests = [
        json.dumps({**common, "problem": problem.problem, "answer": problem.answer, "response": response})
        for problem, response in zip(problems, responses, strict=True)
    ]
    verdicts = in_workers(requests, timeout)
    return [verdicts[request] for request in requests]
