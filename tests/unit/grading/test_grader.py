"""A grader of any origin, in the workers: what it says, what it cannot do, and each problem by its own."""

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from opd.grading.grader import MATHEMATICS, grade, mathematics
from opd.grading.grading import Grade, grade_many, stop_workers


@dataclass(frozen=True)
class Posed:
    problem: str
    answer: str
    grader: str = MATHEMATICS


def by(name: str, **knobs: object) -> str:
    return json.dumps({"_target_": f"tests.doubles.graders.{name}", **knobs})


@pytest.fixture(autouse=True)
def no_workers():
    yield
    stop_workers()


def test_each_problem_is_graded_by_its_own_grader_in_order():
    problems = [Posed("a", "12", by("half", worth=0.25)), Posed("b", "12"), Posed("c", "9", by("half", worth=1.0))]
    found = grade([*problems, problems[0]], ["x 12", "#### 12", "is 9", "none"], timeout=20.0)
    assert found == [
        Grade(False, "x 1", "said", 0.25),
        Grade(True, "12", "equal", 1.0),
        Grade(True, "is ", "said", 1.0),
        Grade(False, "non", "said", 0.0),
    ]


def test_a_response_that_breaks_a_grader_is_wrong_and_no_others():
    problems = [Posed("a", "1", by("hostile"))] * 4
    found = grade(problems, ["hang", "raise", "lie", "well"], timeout=2.0)
    assert [each.reason for each in found] == ["timeout", "error", "error", "fine"]
    assert [each.score for each in found] == [0.0, 0.0, 0.0, 1.0] and [each.correct for each in found][:3] == [
        False
    ] * 3


def test_importing_a_grader_is_not_part_of_an_answers_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = """
        import time
        from opd.grading.grading import Grade

        time.sleep(3)

        def slow(problem, response):
            return Grade(True, response, "equal")
    """
    (tmp_path / "slow_to_import.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    node = json.dumps({"_target_": "slow_to_import.slow"})
    assert grade([Posed("a", "1", node)], ["1"], timeout=1.0) == [Grade(True, "1", "equal", 1.0)]


def test_mathematics_is_what_grade_many_says():
    said = [r"\boxed{\frac{92}{2}}", "45", ""]
    problems = [Posed("a", "46")] * 3
    expected = grade_many(said, ["46"] * 3, timeout=20.0)
    assert grade(problems, said, timeout=20.0) == expected
    assert [mathematics(problem, text, timeout=20.0) for problem, text in zip(problems, said, strict=True)] == expected
    assert [each.score for each in expected] == [1.0, 0.0, 0.0]
