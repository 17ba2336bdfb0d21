import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from opd.errors import UserError
from opd.grading import grading, worker as grading_worker
from opd.grading.answer import find_answer, find_gold, same
from opd.grading.grading import Grade, grade_many, stop_workers
from tests.shared_data import CI, DATA, shared
from tests.unit.grading.twins import RIGHT as TWINS_RIGHT, TWINS, WRONG

SETS = ["aime24", "aime25", "hmmt_feb25", "brumo25", "beyondaime", "gsm8k_test", "gsm8k_train", "deepmath_sample"]

DECLINED_KINDS = {
    "multiple_choice": "a letter named in prose is not mathematics; a letter in a box is graded",
    "bracketed": "square brackets are an interval or a list here, not the frame of an answer",
}
DECLINED_CASES = {
    "g0028": "asks that a plain number count for nothing (extraction of LaTeX only)",
    "g0029": "asks that a plain number count for nothing (extraction of LaTeX only)",
    "g0127": "asks for rounding to two digits; six are compared",
    "g0280": "the number is inside Chinese text, without blanks, formula or box",
    "g0333": "asks that lists be ordered; solutions of an equation have no order (g0190, g0209)",
    "g0349": "asks for a relative tolerance of 1e-3, which g0327 and g0554 forbid",
    "g0352": "asks for a relative tolerance of 1e-3, which g0327 and g0554 forbid",
    "g0482": "asks that only a boxed answer count, which g0483 forbids",
    "g0486": "asks that only the last 300 characters count",
    "g0564": "asks that only a boxed answer count, which g0518 forbids",
    "g0572": "asks that only a boxed answer count, which g0518 forbids",
}

SLOW = r"\boxed{(x+y+z)^{300}}"  # math-verify would expand it
ENDS = 20.0  # seconds in which a process that is told to end has, on a busy machine
RIGHT = [
    (r"\boxed{\frac{2}{4}}", "0.5"),
    (r"$x = 1 + a$", "a+1"),
    ("#### 46", "46"),
    ("it is 3/4 of it", r"\frac{3}{4}"),
]
HOSTILE = [
    "9**9**9**9",
    r"\boxed{9^{9^{9^{9}}}}",
    "The answer is 9**9**9**9",
    r"\boxed{(10^{10})!}",
    SLOW,
    r"\boxed{" + "{" * 100_000,
    r"\boxed{" + "{" * 4000 + "}" * 4001,
    "{" * 900 + "1" + "}" * 900,
    r"\boxed{" + r"\frac{1}{" * 80 + "1" + "}" * 81,
    r"\frac{" * 1300,
    "$" * 9000,
    "answer: $" * 1000,
    r"\(" * 4000,
    "\x00" * 5000,
    "\ud800\udfff\udc00 \\boxed{\ud800}",
    "a" * 10_000_000,
    "1+" * 5_000_000,
    r"\boxed{" + "9" * 7000 + "}",
    r"\boxed{1/0}",
    "",
]


def cases() -> list[dict]:
    try:
        return [json.loads(line) for line in (DATA / "grader_cases.jsonl").read_text().strip().split("\n")]
    except OSError:
        return []


def accepted() -> list[dict]:
    """The cases to grade; one that its suite calls symmetric comes a second time, turned round."""
    kept = [case for case in cases() if case["kind"] not in DECLINED_KINDS and case["id"] not in DECLINED_CASES]
    turned = [
        case | {"id": f"{case['id']}-turned", "prediction": case["gold"], "gold": case["prediction"]}
        for case in kept
        if (case.get("note") or {}).get("symmetric")
    ]
    return kept + turned


def golds(name: str) -> list[str]:
    lines = shared(f"{name}.jsonl").read_text().strip().split("\n")
    return list(dict.fromkeys(json.loads(line)["answer"] for line in lines))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def fresh():
    stop_workers()
    yield
    stop_workers()


@pytest.fixture
def no_workers(monkeypatch):
    def refuse():
        raise AssertionError("a worker was asked for")

    monkeypatch.setattr(grading, "_take_worker", refuse)


# ---- verdicts


@pytest.mark.skipif(not CI and not cases(), reason="needs grader_cases.jsonl of the shared data, which is not here")
def test_cases_of_public_graders():
    kept = accepted()
    assert len(kept) > 250
    grades = grade_many([case["prediction"] for case in kept], [case["gold"] for case in kept], timeout=20.0)
    assert [
        f"{case['id']}: {case['prediction'][-200:]!r} against {case['gold'][-200:]!r}: {grade}"
        for case, grade in zip(kept, grades, strict=True)
        if grade.correct != case["expected"]
    ] == []


def test_twins_are_told_apart():
    grades = grade_many([response for _, response, _, _ in TWINS], [gold for _, _, gold, _ in TWINS], timeout=20.0)
    assert [
        f"{kind}: {response!r} against {gold!r}: {grade}"
        for (kind, response, gold, equal), grade in zip(TWINS, grades, strict=True)
        if grade.correct != equal
    ] == []
    assert {kind for kind, *_ in TWINS_RIGHT} == {kind for kind, *_ in WRONG}


@pytest.mark.skipif(not CI and not cases(), reason="needs grader_cases.jsonl of the shared data, which is not here")
def test_declined_cases_exist_and_are_few():
    known = {case["id"]: case["kind"] for case in cases()}
    assert set(DECLINED_CASES) <= set(known) and set(DECLINED_KINDS) <= set(known.values())
    assert not {known[name] for name in DECLINED_CASES} & set(DECLINED_KINDS)


@pytest.mark.parametrize("name", SETS)
def test_gold_is_right_and_another_answer_wrong(name):
    answers = golds(name)
    boxed = grade_many([rf"Thus $\boxed{{{gold}}}$." for gold in answers], answers, timeout=20.0)
    assert [gold for gold, grade in zip(answers, boxed, strict=True) if grade.reason != "equal"] == []
    expressions = [gold for gold in answers if not gold.lstrip("-").isdigit()]
    sample = [gold for gold in answers if gold not in expressions]
    sample += random.Random(0).sample(expressions, min(len(expressions), 100))
    wrong = grade_many([r"Thus $\boxed{-1237}$."] * len(sample), sample, timeout=20.0)
    assert [gold for gold, grade in zip(sample, wrong, strict=True) if grade.reason != "different"] == []


@pytest.mark.parametrize("name", ["hmmt_feb25", "brumo25", "deepmath_sample"])
def test_gold_is_right_in_prose(name):
    """Here math-verify decides: nothing of this is plain to see."""
    answers = random.Random(1).sample(golds(name), 20)
    grades = grade_many(
        [f"The final answer is ${gold}$. I hope it is correct." for gold in answers], answers, timeout=20.0
    )
    assert [gold for gold, grade in zip(answers, grades, strict=True) if not grade.correct] == []


@pytest.mark.skipif(not CI and not cases(), reason="needs grader_cases.jsonl of the shared data, which is not here")
def test_what_is_plain_to_see_math_verify_sees_too():
    settled = 0
    for case in cases():
        answer, gold = find_answer(case["prediction"]), find_gold(case["gold"])
        verdict = same(answer, gold) if answer and gold else None
        if verdict is not None:
            settled += 1
            assert grading_worker.judge(vars(gold), vars(answer))["equal"] == verdict, case
    assert settled > 80


def test_plain_numbers_are_compared_as_math_verify_does():
    rng = random.Random(0)
    forms = ["{}", "{}.0", "0{}", "{:,}", "${}", "{}.", "-{}", "+{}", "{}.5", "{}.50", "{},5", "{}.0000004"]
    forms += [r"\${}", ".{}", "{}%"]
    for _ in range(300):
        value = rng.choice([0, 1, 7, 46, 999, 1000, 1234567, 10**16])
        other = rng.choice([value, value, value + 1])
        response, gold = rf"\boxed{{{rng.choice(forms).format(value)}}}", rng.choice(forms).format(other)
        answer, right = find_answer(response), find_gold(gold)
        assert answer and right
        if (verdict := same(answer, right)) is not None:
            assert grading_worker.judge(vars(right), vars(answer))["equal"] == verdict, (response, gold)


@pytest.mark.parametrize(
    ("response", "gold", "grade"),
    [
        ("#### 1,046", "1046", Grade(True, "1046", "equal")),
        (r"\boxed{45}", "46", Grade(False, "45", "different")),
        ("", "46", Grade(False, None, "no answer")),
        ("I do not know.", "46", Grade(False, None, "no answer")),
        (r"\boxed{\frac{92}{2}}", "46", Grade(True, r"\frac{92}{2}", "equal")),
        ("There are 46 apples.", "46", Grade(True, "46", "equal")),
        (r"\boxed{46}", "", Grade(False, "46", "different")),
        (SLOW, "46", Grade(False, "(x+y+z)^{300}", "timeout")),
    ],
)
def test_grade(response, gold, grade):
    limit = 1.0 if grade.reason == "timeout" else 20.0
    assert grade_many([response], [gold], timeout=limit) == [grade]


# ---- the cheap path


def test_arithmetic_needs_no_worker(no_workers):
    responses = [f"{a}+{b}=#### {a + b + a % 2}" for a in range(30) for b in range(30)]
    right = [str(a + b) for a in range(30) for b in range(30)]
    assert sum(grade.correct for grade in grade_many(responses, right, timeout=1.0)) == 450


def test_one_question_is_asked_once(monkeypatch):
    asked = []

    def ask(questions, *_):
        asked.extend(questions)
        return {question: Grade(True, "x", "equal") for question in questions}

    monkeypatch.setattr(grading, "_ask", ask)
    responses = [r"\boxed{\frac{2}{4}}", r"So \boxed{\frac{2}{4}}", r"\boxed{\frac{2}{4}}", r"\boxed{\frac{3}{4}}"]
    assert len(grade_many(responses, ["0.5"] * 4, timeout=1.0)) == 4
    assert len(asked) == 2


def test_nothing_to_grade(no_workers):
    assert grade_many([], [], timeout=1.0) == []


# ---- hostile responses


def test_hostile_responses_cost_their_limit_and_no_other_grade():
    assert all(grade.correct for grade in grade_many(*zip(*RIGHT, strict=True), timeout=20.0))  # a worker is warm
    limit, starts = 0.5, 10.0
    mixed = [pair for response in HOSTILE for pair in ((response, "x^{2}+1"), *RIGHT)]
    started = time.monotonic()
    grades = grade_many([response for response, _ in mixed], [gold for _, gold in mixed], timeout=limit, workers=1)
    took = time.monotonic() - started
    assert [
        grade
        for (response, _), grade in zip(mixed, grades, strict=True)
        if response not in HOSTILE and not grade.correct
    ] == []
    assert not any(grade.correct for grade in grades[:: 1 + len(RIGHT)])
    late = sum(grade.reason == "timeout" for grade in grades)
    assert 4 <= late <= len(HOSTILE) and took < len(HOSTILE) * limit + late * starts


@pytest.mark.parametrize("response", [SLOW, "The answer is 9**9**9**9", r"\boxed{(10^{10})!}"])
def test_limit_is_kept(response):
    grade_many(*zip(*RIGHT, strict=True), timeout=20.0, workers=1)
    started = time.monotonic()
    (grade,) = grade_many([response], ["46"], timeout=0.5, workers=1)
    assert grade.reason == "timeout" and 0.5 <= time.monotonic() - started < 0.5 + grading.GRACE + ENDS


def test_worker_that_cannot_even_time_itself_is_ended(fresh):
    grade_many(*zip(*RIGHT, strict=True), timeout=20.0, workers=1)
    grading._idle[0].process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    (grade,) = grade_many([r"\boxed{\sqrt{4}}"], ["2"], timeout=0.5, workers=1)
    assert grade.reason == "timeout" and time.monotonic() - started < 0.5 + grading.GRACE + ENDS


def test_worker_is_bounded_and_deaf_to_the_runs_signals(fresh):
    grade_many(*zip(*RIGHT, strict=True), timeout=20.0, workers=1)
    (worker,) = grading._idle
    limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
    assert f"Max address space         {grading_worker.MEMORY_LIMIT}" in limits
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        worker.process.send_signal(number)
    assert all(grade.correct for grade in grade_many(*zip(*RIGHT, strict=True), timeout=20.0, workers=1))
    assert grading._idle == [worker]


def test_worker_of_a_large_run_has_not_grown(fresh):
    code = """if True:
        block = b"1" * (3 << 29)  # a run that once held more than its worker may
        from opd.grading import grading
        grading.grade_many([r"\\boxed{\\sqrt{4}}"], ["2"], timeout=20.0, workers=1)
        print(len(grading._idle))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_worker_that_grew_is_replaced(fresh, monkeypatch):
    grade_many([r"\boxed{\sqrt{4}}"], ["2"], timeout=20.0, workers=1)
    (first,) = grading._idle
    monkeypatch.setattr(first, "ask", lambda *_: {"equal": True, "answer": "2", "last": True})
    assert grade_many([r"\boxed{\sqrt{4}}"], ["2"], timeout=20.0, workers=1)[0].correct
    assert grading._idle == [] and gone(first.process.pid)


def test_killed_worker_is_replaced_and_its_question_asked_again(fresh):
    grade_many([r"\boxed{\sqrt{4}}"], ["2"], timeout=20.0, workers=1)
    grading._idle[0].process.kill()
    assert grade_many([r"\boxed{\sqrt{9}}"], ["3"], timeout=20.0, workers=1) == [Grade(True, r"\sqrt{9}", "equal")]


def test_worker_that_dies_twice_of_one_response_is_an_error(fresh, monkeypatch):
    def dies(self, question, timeout):
        if json.loads(question)["answer"]["text"] == r"\sqrt{9}":
            raise grading._WorkerDied(timed_out=False)
        return asked(self, question, timeout)

    asked = grading._Worker.ask
    monkeypatch.setattr(grading._Worker, "ask", dies)
    grades = grade_many([r"\boxed{\sqrt{9}}", r"\boxed{\sqrt{4}}"], ["3", "2"], timeout=20.0, workers=1)
    assert grades == [Grade(False, r"\sqrt{9}", "error"), Grade(True, r"\sqrt{4}", "equal")]


def test_worker_imports_neither_torch_nor_us():
    script = """
        import runpy, sys
        worker = runpy.run_path(sys.argv[1])
        assert worker["judge"]({"text": "1/2", "bare": True}, {"text": "0.5", "bare": True})["equal"]
        assert not {"torch", "transformers", "opd", "numpy"} & set(sys.modules), sorted(sys.modules)
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(script), grading_worker.__file__]
    assert subprocess.run(command).returncode == 0


def test_grading_imports_neither_torch_nor_sympy():
    script = "import sys, opd.grading.grading; assert not {'torch', 'transformers', 'sympy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_a_killed_parent():
    script = r"""
        import threading, time
        from opd.grading import grading
        grading.grade_many([r"\boxed{\sqrt{4}}", r"\boxed{\sqrt{9}}"] * 2, ["2", "3"] * 2, timeout=20.0, workers=1)
        idle = grading._Worker()
        print(grading._idle[0].process.pid, idle.process.pid, flush=True)
        grading.grade_many([SLOW], ["46"], timeout=3.0, workers=1)
    """.replace("SLOW", repr(SLOW))
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        busy, idle = map(int, parent.stdout.readline().split())
        time.sleep(0.3)
        parent.kill()
    try:
        assert wait_until(lambda: gone(idle), ENDS)
        assert wait_until(lambda: gone(busy), 3 + ENDS)  # at the latest when its time is up
    finally:
        for pid in (busy, idle):
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_grading_from_threads_at_once(fresh):
    results = {}

    def grade(name):
        results[name] = grade_many(
            [rf"\boxed{{\frac{{{2 * name}}}{{2}}}}", SLOW], [str(name), "46"], timeout=5.0, workers=1
        )

    threads = [threading.Thread(target=grade, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[grade.reason for grade in results[name]] for name in range(3)] == [["equal", "timeout"]] * 3


def test_grading_in_a_fork_uses_its_own_worker(fresh):
    grade_many([r"\boxed{\sqrt{4}}"], ["2"], timeout=20.0, workers=1)
    before = list(grading._idle)
    child = os.fork()
    if child == 0:
        right = grading._idle == [] and grade_many([r"\boxed{\sqrt{4}}"], ["2"], timeout=20.0, workers=1)[0].correct
        stop_workers()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert grading._idle == before and grade_many([r"\boxed{\sqrt{9}}"], ["3"], timeout=20.0, workers=1)[0].correct


# ---- misuse


def test_misuse_is_refused():
    with pytest.raises(ValueError):
        grade_many(["1"], [], timeout=1.0)
    for options in ({"timeout": 0.0}, {"timeout": float("nan")}, {"timeout": 1.0, "workers": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            grade_many([], [], **options)


def test_worker_that_cannot_start_is_told(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'No module named math_verify' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(grading.sys, "executable", str(broken))
    with pytest.raises(UserError, match="the grading worker does not start: No module named math_verify"):
        grade_many([r"\boxed{\sqrt{4}}"], ["2"], timeout=1.0)
