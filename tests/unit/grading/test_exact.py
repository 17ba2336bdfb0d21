import json

import pytest

from opd.grading.grader import exact, grade
from opd.grading.grading import Grade
from tests.unit.grading.test_grader import Posed

EXACT = json.dumps({"_target_": "opd.grading.grader.exact"})


@pytest.mark.parametrize(
    ("response", "answer", "reason"),
    [
        ("12\n#### 0123", "0123", "equal"),
        ("#### 0123  \n", "0123", "equal"),
        ("#### 123", "123", "different"),
        ("#### 0123\n#### 0213", "0213", "different"),
        ("x\n0123\n\n", "0123", "equal"),
        ("#### 0123\nand more", "0123", "equal"),
        ("####", None, "no answer"),
        ("", None, "no answer"),
        (" \n ", None, "no answer"),
        ("#### " + "0" * 1001, None, "no answer"),
        ("#### 0123" + "\n." * 5000, ".", "different"),
    ],
)
def test_answer_to_the_letter(response: str, answer: str | None, reason: str):
    expected = Grade(reason == "equal", answer, reason)
    assert grade([Posed("sort 3120", "0123", EXACT)], [response], timeout=1.0) == [expected]
    assert exact(Posed("sort 3120", "0123", EXACT), response, timeout=1.0) == expected
