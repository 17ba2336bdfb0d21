"""What state every run of a study is in: by its own records, checked against who runs it."""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from opd.records.run_dir import RecordError, RunDir, Status
from sweeps import local, slurm
from sweeps.glance import Glances
from sweeps.ledger import Ledger, Submission, attempts

STATES = ("queued", "running", "preempted", "finished", "failed", "refused", "timeout", "lost", "cancelled", "pending")
# Ended without having finished; a new submission goes on from their checkpoints.
RESUMABLE = ("failed", "refused", "timeout", "lost", "cancelled", "preempted")
# Nothing will change these by itself.
SETTLED = ("finished", "failed", "refused", "timeout", "lost", "cancelled")

_RUN_ID = re.compile(r"(?P<name>.+)-[0-9a-f]{8}-s(?P<seed>\d+)")


@dataclass
class Seen:
    """A run as it is now. `note` says where its records and SLURM disagreed, or why it waits."""

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

    @property
    def live(self) -> bool:
        return self.state in ("queued", "running")


@dataclass(frozen=True)
class Look:
    """All runs of a study, and what could not be found out."""

    runs: list[Seen]
    troubles: list[str]


def look(
    ledger: Ledger, only: Iterable[str] | None = None, *, metrics: bool = True, glances: Glances | None = None
) -> Look:
    """The state of every run of a study (of `only` these), by name and seed. Writes nothing."""
    glances = glances or Glances(ledger.study)
    submissions = ledger.submissions()
    owners: dict[str, tuple[Submission, int]] = {}
    for submission in submissions:
        if submission.abandoned is None:
            owners |= {run: (submission, place) for place, run in enumerate(submission.runs)}
    found, troubles = {}, []
    for run in sorted(set(only) if only is not None else _folders(ledger.study) | owners.keys()):
        try:
            found[run] = glances.status(run)
        except RecordError as error:
            troubles.append(str(error))
            found[run] = None
    answers = _Answers(
        ledger, {run: owners[run][0] for run, status in found.items() if _open(status) and run in owners}
    )
    seen = [_seen(ledger, run, status, owners.get(run), answers) for run, status in found.items()]
    for one in seen if metrics else []:
        if (status := found[one.run]) is not None:
            _last_metrics(glances, one, status)
    return Look(seen, troubles + answers.troubles)


def settle(ledger: Ledger, runs: Iterable[Seen]) -> list[str]:
    """Writes into the records of runs that still call themselves running what really became of them."""
    settled = []
    for seen in runs:
        if seen.state not in ("lost", "timeout", "cancelled"):
            continue
        folder = RunDir(ledger.study / seen.run)
        if not folder.status_file.exists():
            continue
        with suppress(Timeout, OSError, RecordError), FileLock(folder.path / ".lock", timeout=0):
            if folder.status().state == "running":
                folder.update_status(state="failed", error=f"{seen.state}: {seen.error}")
                settled.append(seen.run)
    return settled


def as_record(seen: Seen) -> dict[str, Any]:
    """For `--json`."""
    return asdict(seen)


class _Answers:
    """Who runs what, asked once: SLURM for all of its jobs, this machine for its runners."""

    def __init__(self, ledger: Ledger, owners: Mapping[str, Submission]) -> None:
        self.troubles: list[str] = []
        self.jobs: dict[str, slurm.Job] | None = {}
        submissions = {submission.id: submission for submission in owners.values()}.values()
        self.runners = {
            one.id: local.alive(ledger.submission_folder(one.id), one.pid, one.host)
            for one in submissions
            if one.cluster == "local"
        }
        if ids := [job for one in submissions if one.cluster == "slurm" for job, _, _ in one.jobs]:
            try:
                self.jobs = slurm.jobs(ids)
            except slurm.Unanswered as error:
                self.jobs = None
                self.troubles.append(f"SLURM does not answer ({error}); states are the records' own")


def _open(status: Status | None) -> bool:
    return status is None or status.state != "finished"


def _folders(study: Path) -> set[str]:
    if not study.is_dir():
        return set()
    with os.scandir(study) as entries:
        return {entry.name for entry in entries if _RUN_ID.fullmatch(entry.name) and entry.is_dir()}


def _seen(
    ledger: Ledger,
    run: str,
    status: Status | None,
    owner: tuple[Submission, int] | None,
    answers: _Answers,
) -> Seen:
    identity = _RUN_ID.fullmatch(run)
    seen = Seen(
        run=run,
        study=ledger.study.name,
        name=identity["name"] if identity else run,
        seed=int(identity["seed"]) if identity else None,
        state=status.state if status else "pending",
        step=status.step if status else 0,
        num_steps=status.num_steps if status else 0,
        metrics={},
        left=None,
        job=None,
        node=status.host if status else None,
        attempts=status.attempts if status else 0,
        error=(status.error or "").partition("\n")[0] or None if status else None,
        note=None,
    )
    _by_its_error(seen)
    if _open(status):
        if owner is None:
            _by_hand(ledger, seen)
        else:
            _by_owner(ledger, seen, *owner, answers)
        if seen.state in ("lost", "timeout") and _held(ledger.study / run):
            seen.note = f"{seen.error}, but a process still runs it"
            seen.state, seen.error = "running", None
    elif owner is not None:
        seen.job = owner[0].job_of(owner[1])
    return seen


def _by_its_error(seen: Seen) -> None:
    """A run that was settled says so at the start of its error."""
    kind = (seen.error or "").partition(": ")[0]
    if seen.state == "failed" and kind in ("lost", "timeout", "cancelled"):
        seen.state, seen.error = kind, (seen.error or "").partition(": ")[2]


def _by_hand(ledger: Ledger, seen: Seen) -> None:
    """A run that no submission of ours holds: it runs where its own lock is held."""
    if seen.state == "running" and seen.node == os.uname().nodename and not _held(ledger.study / seen.run):
        seen.state, seen.error = "lost", "no process runs it"


def _held(folder: Path) -> bool:
    """Whether a process holds a run's directory, as far as this machine can see."""
    if not (folder / ".lock").exists():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _by_owner(ledger: Ledger, seen: Seen, submission: Submission, place: int, answers: _Answers) -> None:
    try:
        past = attempts(ledger.submission_folder(submission.id), seen.run)
    except RecordError as error:
        past, seen.note = [], str(error)
    if not past and seen.note is None and seen.state not in ("running", "finished"):
        # What its records say is of an earlier submission.
        seen.state = "queued"
    if past and past[-1]["event"] == "start":
        seen.state, seen.error = "running", None
    elif past and past[-1]["verdict"] == "refused" and seen.state in ("failed", "pending", "running"):
        seen.state = "refused"
    elif past and past[-1]["verdict"] == "failed" and seen.state == "pending":
        seen.state, seen.error = (
            "failed",
            f"ended with status {past[-1]['status']} before it wrote anything; see its log",
        )
    seen.attempts = max(seen.attempts, sum(line["event"] == "start" for line in past))
    if submission.cluster == "local":
        _by_runner(seen, submission, past, answers.runners[submission.id])
    else:
        _by_slurm(seen, submission, place, past, answers.jobs)
    if seen.run in submission.cancelled and not seen.live and seen.state not in ("finished", "failed", "refused"):
        seen.state, seen.error = "cancelled", "cancelled by python -m sweeps.cancel"


def _by_runner(seen: Seen, submission: Submission, past: list[dict[str, Any]], alive: bool) -> None:
    if not submission.submitted and not alive:
        seen.state = "pending" if seen.state == "queued" else seen.state
    elif alive:
        unwanted = seen.run in submission.cancelled
        if unwanted and seen.state == "queued":
            seen.state = "cancelled"
        elif past and past[-1]["event"] == "end" and past[-1]["verdict"] in ("requeue", "retry"):
            seen.state, seen.error = "queued", None
    elif seen.state in ("running", "queued") or (past and past[-1].get("verdict") in ("requeue", "retry")):
        seen.state, seen.error = "lost", "the runner of its submission has ended"


def _by_slurm(
    seen: Seen, submission: Submission, place: int, past: list[dict[str, Any]], jobs: dict[str, slurm.Job] | None
) -> None:
    seen.job = submission.job_of(place)
    if jobs is None or seen.job is None:
        if seen.job is None and seen.state == "queued":
            seen.state = "pending"
        return
    job = jobs.get(seen.job)
    if job is None:
        if seen.state in ("running", "queued", "preempted"):
            seen.note = f"records say {seen.state}, SLURM knows no job {seen.job}"
            seen.state, seen.error = "lost", f"SLURM knows no job {seen.job}"
        return
    seen.node = job.node or seen.node
    if job.state in slurm.WAITING:
        seen.state, seen.error, seen.note = "queued", None, job.reason if job.reason != "None" else None
    elif job.state in slurm.LIVE:
        if seen.state == "queued":
            seen.state = "running" if not past else seen.state
        elif seen.state in ("failed", "preempted") and past and past[-1].get("verdict") in ("requeue", "retry"):
            seen.state, seen.error = "queued", None
    elif job.state == "CANCELLED":
        _ended(seen, "cancelled", job.state)
    elif job.state in ("TIMEOUT", "DEADLINE"):
        _ended(seen, "timeout", job.state)
    elif seen.state in ("running", "queued", "preempted") or (past and past[-1].get("verdict") in ("requeue", "retry")):
        _ended(seen, "lost", job.state)


def _ended(seen: Seen, state: str, said: str) -> None:
    if seen.state in ("failed", "refused", "finished"):
        return
    if seen.state == "running":
        seen.note = f"records say running, SLURM says {said}"
    seen.state, seen.error = state, f"SLURM ended job {seen.job} as {said}"


def _last_metrics(glances: Glances, seen: Seen, status: Status) -> None:
    seen.metrics = glances.metrics(seen.run, status)
    if seen.live and seen.num_steps:
        seconds = glances.last(seen.run).get("time/step")
        seen.left = seconds * (seen.num_steps - seen.step) if seconds else None
