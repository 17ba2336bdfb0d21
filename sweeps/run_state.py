"""The state of a run, and how the state of its job changes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

STATES = ("queued", "running", "preempted", "finished", "failed", "refused", "timeout", "lost", "cancelled", "pending")
# Ended without finishing; a new submission continues from their checkpoints.
RESUMABLE = ("failed", "refused", "timeout", "lost", "cancelled", "preempted")


@dataclass
class RunState:
    """A run's current state. `note` says where its records and the scheduler disagree, or why it waits; `differs` what
    tells its config from those of the same name, where there are others.
    """

    run: str
    study: str
    name: str
    seed: int | None
    state: str
    step: int
    num_steps: int
    metrics: dict[str, float]
    left: float | None
    job: str | None
    node: str | None
    attempts: int
    error: str | None
    note: str | None
    differs: str = ""

    @property
    def live(self) -> bool:
        return self.state in ("queued", "running")


@dataclass(frozen=True)
class Job:
    """A batch job in common terms; `state` is the scheduler's own word, `reason` why a waiting job waits."""

    phase: Literal["waiting", "active", "cancelled", "timeout", "ended"]
    state: str
    node: str = ""
    reason: str | None = None


def to_retry(attempts: Sequence[dict[str, Any]]) -> bool:
    """Whether the last attempt ended and another is to follow."""
    return bool(attempts) and attempts[-1].get("verdict") in ("requeue", "retry")


def place_job(run: RunState, scheduler: str, job: Job | None, attempts: Sequence[dict[str, Any]]) -> None:
    """Correct the state of an unfinished run by that of its job, None where the scheduler does not know the job."""
    if job is None:
        if run.state in ("running", "queued", "preempted"):
            run.note = f"records say {run.state}, {scheduler} knows no job {run.job}"
            run.state, run.error = "lost", f"{scheduler} knows no job {run.job}"
        return
    run.node = job.node or run.node
    if job.phase == "waiting":
        run.state, run.error, run.note = "queued", None, job.reason
    elif job.phase == "active":
        if run.state == "queued":
            run.state = "running" if not attempts else run.state
        elif run.state in ("failed", "preempted") and to_retry(attempts):
            run.state, run.error = "queued", None
    elif job.phase in ("cancelled", "timeout"):
        _end(run, job.phase, scheduler, job)
    elif run.state in ("running", "queued", "preempted") or to_retry(attempts):
        _end(run, "lost", scheduler, job)


def _end(run: RunState, state: str, scheduler: str, job: Job) -> None:
    if run.state in ("failed", "refused", "finished"):
        return
    if run.state == "running":
        run.note = f"records say running, {scheduler} says {job.state}"
    run.state, run.error = state, f"{scheduler} ended job {run.job} as {job.state}"
