"""A SLURM task between two attempts: requeued, or continued in place."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps import slurm_commands, task
from sweeps.executor import Unavailable
from sweeps.task import PREEMPTED, Task
from tests.unit.sweeps.conftest import failed_study


@pytest.fixture
def attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The verdicts of two fake attempts: retry, then finished."""
    made: list[str] = []

    def attempt(_: Task, asked: list[int]) -> str:
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        made.append("finished" if made else "retry")
        return made[-1]

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(task, "attempt", attempt)
    monkeypatch.setattr(task.time, "sleep", lambda _: None)
    yield made
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    ledger = failed_study(tmp_path)
    (ledger.submission_folder("one") / "cluster.json").write_text(
        '{"kind": "slurm", "max_parallel": 1, "max_retries": 1}'
    )
    return ledger.submission_folder("one")


@pytest.mark.parametrize("answer", [None, Unavailable("scontrol: status -15")])
def test_a_requeued_job_exits_even_if_scontrol_was_killed_with_it(
    answer: Exception | None, attempts: list[str], submission: Path, monkeypatch: pytest.MonkeyPatch
):
    def requeue() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if answer:
            raise answer

    monkeypatch.setattr(slurm_commands, "requeue_this_task", requeue)
    assert task.main(submission, 0) == PREEMPTED and attempts == ["retry"]


def test_a_job_that_cannot_be_requeued_continues_in_place(
    attempts: list[str], submission: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def requeue() -> None:
        raise Unavailable("scontrol: Requested operation is presently disabled")

    monkeypatch.setattr(slurm_commands, "requeue_this_task", requeue)
    assert task.main(submission, 0) == 0 and attempts == ["retry", "finished"]
    assert (
        "cannot be requeued (scontrol: Requested operation is presently disabled); continuing"
        in capsys.readouterr().out
    )
