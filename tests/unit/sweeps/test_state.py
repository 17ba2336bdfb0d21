"""What a run is said to be: by its own records, its submissions, and whoever runs them."""

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
from filelock import FileLock

from opd.records.run_dir import RunDir, State, Status
from sweeps import slurm, state
from sweeps.ledger import Ledger

RUN = "mis-01234567-s0"
THEN = "2026-01-01T00:00:00+00:00"
START, RETRY = {"event": "start"}, {"event": "end", "status": -9, "verdict": "retry"}
LEFT, FAILED = {"event": "end", "status": 75, "verdict": "left"}, {"event": "end", "status": 1, "verdict": "failed"}


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    book = Ledger(tmp_path / "main")
    book.folder.mkdir(parents=True)
    return book


def submit(book: Ledger, name: str, cluster: str, runs: list[str], jobs: list[tuple[str, int, int]]) -> None:
    book.append("intent", submission=name, sweep="s", cluster=cluster, code="c", runs=runs, portion=len(runs))
    host, pid = (None, None) if jobs else ("elsewhere", 1)
    book.append("submitted", submission=name, jobs=jobs, pid=pid, host=host)
    (book.submission_folder(name) / "attempts").mkdir(parents=True)


def says(book: Ledger, run: str, how: State | None, past: list[dict], submission: str = "one") -> RunDir:
    """What the run's status says (None: there is none) and what its task wrote down."""
    folder = RunDir(book.study / run)
    folder.path.mkdir(parents=True, exist_ok=True)
    if how is not None:
        folder.write_status(Status(how, 3, 10, None, THEN, THEN, "elsewhere", None, 1))
    file = book.submission_folder(submission) / "attempts" / f"{run}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in past))
    return folder


def seen(book: Ledger, run: str = RUN) -> state.Seen:
    (found,) = state.look(book, [run]).runs
    return found


@pytest.fixture
def said_by_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Programs of the names of SLURM's that print these lines of squeue's and of sacct's."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def say(queue: str, accounting: str) -> None:
        for name, text in (("squeue", queue), ("sacct", accounting)):
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
            (tmp_path / "bin" / name).chmod(0o755)

    return say


@pytest.mark.parametrize(
    ("how", "past", "job", "expected"),
    [
        (None, [], "PENDING", "queued"),
        (None, [], "RUNNING", "running"),
        ("running", [START], "RUNNING", "running"),
        ("running", [START], "PENDING", "queued"),
        ("running", [START], "COMPLETING", "running"),
        ("running", [START], None, "lost"),
        ("running", [START], "TIMEOUT", "timeout"),
        ("running", [START], "DEADLINE", "timeout"),
        ("running", [START], "CANCELLED by 0", "cancelled"),
        ("running", [START], "NODE_FAIL", "lost"),
        ("running", [START], "OUT_OF_MEMORY", "lost"),
        ("preempted", [START, {**LEFT, "verdict": "requeue"}], "RUNNING", "queued"),
        ("failed", [START, FAILED], "FAILED", "failed"),
        ("failed", [START, FAILED], None, "failed"),
        ("finished", [START], "TIMEOUT", "finished"),
    ],
)
def test_a_run_on_slurm_is_what_its_records_and_its_job_say_together(
    book: Ledger, said_by_slurm, how: State | None, past: list[dict], job: str | None, expected: str
):
    submit(book, "one", "slurm", ["other-01234567-s0", RUN], [("7", 0, 2)])
    says(book, RUN, how, past)
    said_by_slurm("", "" if job is None else f"7_0|COMPLETED|n1\n7_1|{job}|n2")
    found = seen(book)
    assert (found.state, found.job) == (expected, "7_1")
    assert found.node == ("elsewhere" if job is None or how == "finished" else "n2")


def test_the_queue_knows_more_of_a_job_than_the_accounting(said_by_slurm):
    """That of a job which was requeued still tells how the attempt before ended."""
    said_by_slurm("7|1|RUNNING|n3|20:00|None\n7|2|PENDING||20:00|Priority", "7_0|COMPLETED|n1\n7_1|NODE_FAIL|n2")
    found = slurm.jobs(["7"])
    assert {job: one.state for job, one in found.items()} == {"7_0": "COMPLETED", "7_1": "RUNNING", "7_2": "PENDING"}
    assert found["7_1"].node == "n3" and found["7_2"].reason == "Priority"


@pytest.mark.parametrize(
    ("how", "past", "alive", "expected"),
    [
        (None, [], True, "queued"),
        (None, [], False, "lost"),
        ("running", [START], True, "running"),
        ("running", [START], False, "lost"),
        ("failed", [START, RETRY], True, "queued"),
        ("failed", [START, RETRY], False, "lost"),
        ("failed", [START, FAILED], True, "failed"),
        ("failed", [START, FAILED], False, "failed"),
        ("preempted", [START, LEFT], False, "preempted"),
        ("finished", [START], False, "finished"),
    ],
)
def test_a_run_on_this_machine_is_what_its_records_and_its_runner_say_together(
    book: Ledger, how: State | None, past: list[dict], alive: bool, expected: str
):
    submit(book, "one", "local", [RUN], [])
    says(book, RUN, how, past)
    with FileLock(book.submission_folder("one") / "runner.lock") if alive else nullcontext():
        assert seen(book).state == expected


@pytest.mark.parametrize(
    ("how", "past", "alive", "expected"),
    [
        (None, [], True, "cancelled"),
        (None, [], False, "cancelled"),
        ("running", [START], True, "running"),
        ("preempted", [START, LEFT], True, "cancelled"),
        ("preempted", [START, LEFT], False, "cancelled"),
        ("failed", [START, FAILED], True, "failed"),
    ],
)
def test_a_cancelled_run_is_so_once_it_has_left(
    book: Ledger, how: State | None, past: list[dict], alive: bool, expected: str
):
    submit(book, "one", "local", [RUN], [])
    book.append("cancelled", submission="one", runs=[RUN])
    says(book, RUN, how, past)
    with FileLock(book.submission_folder("one") / "runner.lock") if alive else nullcontext():
        assert seen(book).state == expected


def test_a_run_whose_directory_a_process_holds_is_not_lost(book: Ledger):
    submit(book, "one", "local", [RUN], [])
    folder = says(book, RUN, "running", [START])
    with FileLock(folder.path / ".lock"):
        found = seen(book)
        assert found.state == "running" and "but a process still runs it" in (found.note or "")
        assert state.settle(book, [found]) == []
    assert seen(book).state == "lost"


def test_an_abandoned_submission_holds_no_run(book: Ledger):
    submit(book, "one", "local", [RUN], [])
    says(book, RUN, "failed", [START, FAILED])
    book.append("intent", submission="two", sweep="s", cluster="local", code="c", runs=[RUN], portion=1)
    book.append("abandoned", submission="two", reason="its command died before it was handed over")
    assert seen(book).state == "failed"


def test_the_time_left_is_that_of_the_steps_left_each_counted_once(book: Ledger):
    """`time/step` is all stages of a step, and they stand beside it."""
    submit(book, "one", "local", [RUN], [])
    folder = says(book, RUN, "running", [START])
    stages = {"time/rollout": 1.5, "time/backward": 0.5, "time/evaluate": 9.0, "time/sampling": 8.0}
    folder.append_metrics({"step": 2, "time/step": 5.0})
    folder.append_metrics({"step": 3, "time": 70.0, "time/step": 2.0, **stages})
    with FileLock(book.submission_folder("one") / "runner.lock"):
        assert seen(book).left == 7 * 2.0
        folder.append_metrics({"step": 3, "time/step": None})
        assert seen(book).left is None


def test_settling_writes_what_became_of_a_run_into_records_that_call_it_running(book: Ledger):
    runs = [RUN, "mis-01234567-s1"]
    submit(book, "one", "local", runs, [])
    folders = [says(book, run, how, [START]) for run, how in zip(runs, ("running", "preempted"), strict=True)]
    before = asdict(folders[1].status())
    assert state.settle(book, state.look(book).runs) == [RUN]
    assert folders[0].status().state == "failed" and (folders[0].status().error or "").startswith("lost: ")
    assert asdict(folders[1].status()) == before
    assert seen(book).state == "lost"


def test_a_task_of_several_arrays_is_counted_from_the_first_of_its_own(book: Ledger):
    runs = [f"mis-01234567-s{seed}" for seed in range(5)]
    submit(book, "one", "slurm", runs, [("11", 0, 2), ("12", 2, 2), ("20", 4, 1)])
    (one,) = book.submissions()
    assert [one.job_of(place) for place in range(6)] == ["11_0", "11_1", "12_0", "12_1", "20_0", None]


def test_an_event_after_a_torn_line_is_not_lost(book: Ledger):
    submit(book, "one", "local", [RUN], [])
    with open(book.file, "a") as file:
        file.write('{"event": "cancelled", "submis')  # the writer died here
    book.append("cancelled", submission="one", runs=[RUN])
    (one,) = book.submissions()
    assert one.cancelled == {RUN}
