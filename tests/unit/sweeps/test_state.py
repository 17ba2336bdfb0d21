"""The state of a run, by its records, its submission and its executor."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
from filelock import FileLock

from opd.records.run_dir import RunDir, State
from sweeps import slurm_commands, state
from sweeps.ledger import Ledger
from sweeps.run_state import RunState
from tests.unit.sweeps.conftest import RUN, SLURM, submitted, write_attempts, write_status

START, RETRY = {"event": "start"}, {"event": "end", "status": -9, "verdict": "retry"}
LEFT, FAILED = {"event": "end", "status": 75, "verdict": "left"}, {"event": "end", "status": 1, "verdict": "failed"}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "main")
    ledger.folder.mkdir(parents=True)
    return ledger


def says(ledger: Ledger, run: str, how: State | None, past: list[dict], submission: str = "one") -> RunDir:
    """Write the run's status, unless it is None, and the events of its task."""
    write_attempts(ledger.submission_folder(submission), run, past)
    return RunDir(ledger.study / run) if how is None else write_status(ledger.study / run, how)


def seen(ledger: Ledger, run: str = RUN) -> RunState:
    (found,) = state.read(ledger, [run]).runs
    return found


@pytest.fixture
def said_by_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Fake squeue and sacct that print these lines."""
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
def test_the_state_of_a_run_on_slurm_follows_from_its_records_and_its_job(
    ledger: Ledger, said_by_slurm, how: State | None, past: list[dict], job: str | None, expected: str
):
    submitted(ledger, ["other-01234567-s0", RUN], settings=SLURM, jobs=[("7", 0, 2)])
    says(ledger, RUN, how, past)
    said_by_slurm("", "" if job is None else f"7_0|COMPLETED|n1\n7_1|{job}|n2")
    found = seen(ledger)
    assert (found.state, found.job) == (expected, "7_1")
    assert found.node == ("elsewhere" if job is None or how == "finished" else "n2")


def test_the_queue_overrides_the_accounting(said_by_slurm):
    """For a requeued job the accounting still has the end of the previous attempt."""
    said_by_slurm("7|1|RUNNING|n3|None\n7|2|PENDING||Priority", "7_0|COMPLETED|n1\n7_1|NODE_FAIL|n2")
    found = slurm_commands.jobs(["7"])
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
def test_the_state_of_a_local_run_follows_from_its_records_and_its_runner(
    ledger: Ledger, how: State | None, past: list[dict], alive: bool, expected: str
):
    submitted(ledger, [RUN])
    says(ledger, RUN, how, past)
    with FileLock(ledger.submission_folder("one") / "runner.lock") if alive else nullcontext():
        assert seen(ledger).state == expected


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
def test_a_run_is_cancelled_once_it_has_ended(
    ledger: Ledger, how: State | None, past: list[dict], alive: bool, expected: str
):
    submitted(ledger, [RUN])
    ledger.append("cancelled", submission="one", runs=[RUN])
    says(ledger, RUN, how, past)
    with FileLock(ledger.submission_folder("one") / "runner.lock") if alive else nullcontext():
        assert seen(ledger).state == expected


def test_a_run_whose_directory_is_locked_is_not_lost(ledger: Ledger):
    submitted(ledger, [RUN])
    folder = says(ledger, RUN, "running", [START])
    with FileLock(folder.path / ".lock"):
        found = seen(ledger)
        assert found.state == "running" and "but a process still runs it" in (found.note or "")
        assert state.correct_records(ledger, [found]) == []
    assert seen(ledger).state == "lost"


def test_an_abandoned_submission_owns_no_run(ledger: Ledger):
    submitted(ledger, [RUN])
    says(ledger, RUN, "failed", [START, FAILED])
    ledger.append("intent", submission="two", sweep="s", cluster="local", code="c", runs=[RUN], portion=1)
    ledger.append("abandoned", submission="two", reason="its command died before it was handed over")
    assert seen(ledger).state == "failed"


def test_the_time_left_counts_each_remaining_step_once(ledger: Ledger):
    """The metrics have `time/step` and its stages."""
    submitted(ledger, [RUN])
    folder = says(ledger, RUN, "running", [START])
    stages = {"time/rollout": 1.5, "time/backward": 0.5, "time/evaluate": 9.0, "time/sampling": 8.0}
    folder.append_metrics({"step": 2, "time/step": 5.0})
    folder.append_metrics({"step": 3, "time": 70.0, "time/step": 2.0, **stages})
    with FileLock(ledger.submission_folder("one") / "runner.lock"):
        assert seen(ledger).left == 7 * 2.0
        folder.append_metrics({"step": 3, "time/step": None})
        assert seen(ledger).left is None


def test_records_that_say_running_are_corrected(ledger: Ledger):
    runs = [RUN, "mis-01234567-s1"]
    submitted(ledger, runs)
    folders = [says(ledger, run, how, [START]) for run, how in zip(runs, ("running", "preempted"), strict=True)]
    before = asdict(folders[1].status())
    assert state.correct_records(ledger, state.read(ledger).runs) == [RUN]
    assert folders[0].status().state == "failed" and (folders[0].status().error or "").startswith("lost: ")
    assert asdict(folders[1].status()) == before
    assert seen(ledger).state == "lost"


def test_a_run_in_a_later_array_is_numbered_from_its_start(ledger: Ledger):
    runs = [f"mis-01234567-s{seed}" for seed in range(5)]
    submitted(ledger, runs, settings=SLURM, jobs=[("11", 0, 2), ("12", 2, 2), ("20", 4, 1)])
    (one,) = ledger.submissions()
    assert [one.job_of(place) for place in range(6)] == ["11_0", "11_1", "12_0", "12_1", "20_0", None]


def test_an_event_after_a_torn_line_is_not_lost(ledger: Ledger):
    submitted(ledger, [RUN])
    with open(ledger.file, "a") as file:
        file.write('{"event": "cancelled", "submis')  # the writer died here
    ledger.append("cancelled", submission="one", runs=[RUN])
    (one,) = ledger.submissions()
    assert one.cancelled == {RUN}
