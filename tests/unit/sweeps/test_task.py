"""A task of a SLURM job between two attempts: put back into the queue, or going on where it is."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps import slurm, task
from sweeps.task import PREEMPTED, Task
from tests.unit.sweeps.conftest import failed_study


@pytest.fixture
def attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Verdicts of the attempts that are made: one that is to be retried, then one that finished."""
    made: list[str] = []

    def attempt(_: Task, asked: list[int]) -> str:
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        made.append("finished" if made else "retry")
        return made[-1]

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(task, "attempt", attempt)
    monkeypatch.setattr(task, "abandoned", lambda _: False)
    monkeypatch.setattr(task.time, "sleep", lambda _: None)
    yield made
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    book = failed_study(tmp_path)
    (book.submission_folder("one") / "cluster.json").write_text(
        '{"kind": "slurm", "max_parallel": 1, "max_retries": 1}'
    )
    return book.submission_folder("one")


@pytest.mark.parametrize("answer", [None, slurm.Unanswered("scontrol: status -15")])
def test_a_job_that_is_requeued_leaves_though_scontrol_was_ended_with_it(
    answer: Exception | None, attempts: list[str], submission: Path, monkeypatch: pytest.MonkeyPatch
):
    def requeue() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if answer:
            raise answer

    monkeypatch.setattr(slurm, "requeue_this_job", requeue)
    assert task.main(submission, 0) == PREEMPTED and attempts == ["retry"]


def test_a_job_that_cannot_be_requeued_goes_on_where_it_is(
    attempts: list[str], submission: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def requeue() -> None:
        raise slurm.Unanswered("scontrol: Requested operation is presently disabled")

    monkeypatch.setattr(slurm, "requeue_this_job", requeue)
    assert task.main(submission, 0) == 0 and attempts == ["retry", "finished"]
    assert (
        "cannot be requeued (scontrol: Requested operation is presently disabled); going on" in capsys.readouterr().out
    )
