"""The state of every run of a study: by its own records, checked against the executor of its submission."""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from opd.records.files import RecordError
from opd.records.run_dir import RunDir, Status
from sweeps import executor
from sweeps.ledger import Ledger, Submission, attempts, owners as ledger_owners
from sweeps.run_state import RunState
from sweeps.status_cache import StatusCache, shown_number

_RUN_ID = re.compile(r"(?P<name>.+)-[0-9a-f]{8}-s(?P<seed>\d+)")


@dataclass(frozen=True)
class StudyState:
    """The runs of a study, and warnings about what could not be read or asked."""

    runs: list[RunState]
    warnings: list[str]


def read(
    ledger: Ledger, only: Iterable[str] | None = None, *, metrics: bool = True, cache: StatusCache | None = None
) -> StudyState:
    """The state of every run of a study, or of `only` these, by name and seed. Writes nothing."""
    cache = cache or StatusCache(ledger.study)
    submissions, warnings = known_submissions(ledger)
    owners = ledger_owners(submissions)
    statuses: dict[str, Status | None] = {}
    for run in sorted(set(only) if only is not None else _folders(ledger.study) | owners.keys()):
        try:
            statuses[run] = cache.status(run)
        except RecordError as error:
            warnings.append(str(error))
            statuses[run] = None
    unfinished = [owners[run][0] for run, status in statuses.items() if _unfinished(status) and run in owners]
    answers, unavailable = _query({one.id: one for one in unfinished}.values())
    runs = [_run_state(ledger, run, status, owners.get(run), answers) for run, status in statuses.items()]
    for run in runs if metrics else []:
        if (status := statuses[run.run]) is not None:
            _add_metrics(cache, run, status)
    return StudyState(runs, warnings + unavailable)


def known_submissions(ledger: Ledger) -> tuple[list[Submission], list[str]]:
    """The submissions of a ledger whose executor is known, as far as it can be read, and warnings about the rest."""
    submissions, warnings = ledger.intact_submissions()
    unknown = {one.cluster for one in submissions} - executor.EXECUTORS.keys()
    warnings += [f"{ledger.file}: {kind!r} is not a kind of cluster; its submissions are left out" for kind in unknown]
    return [one for one in submissions if one.cluster not in unknown], warnings


def correct_records(ledger: Ledger, runs: Iterable[RunState]) -> list[str]:
    """Mark as failed, with the reason, the runs that have ended while their records say running; their ids."""
    corrected = []
    for run in runs:
        if run.state not in ("lost", "timeout", "cancelled"):
            continue
        folder = RunDir(ledger.study / run.run)
        if not folder.status_file.exists():
            continue
        with suppress(Timeout, OSError, RecordError), FileLock(folder.path / ".lock", timeout=0):
            if folder.status().state == "running":
                folder.update_status(state="failed", error=f"{run.state}: {run.error}")
                corrected.append(run.run)
    return corrected


def _query(submissions: Iterable[Submission]) -> tuple[dict[str, Any], list[str]]:
    """Each executor's answer about its submissions, None where it has none, and warnings about those."""
    of: dict[str, list[Submission]] = {}
    for submission in submissions:
        of.setdefault(submission.cluster, []).append(submission)
    answers, warnings = {}, []
    for kind, some in of.items():
        scheduler = executor.get(kind)
        try:
            answers[kind] = scheduler.query(some)
        except executor.Unavailable as error:
            answers[kind] = None
            warnings.append(f"{scheduler.name} does not answer ({error}); states are from the records alone")
    return answers, warnings


def _unfinished(status: Status | None) -> bool:
    return status is None or status.state != "finished"


def _folders(study: Path) -> set[str]:
    if not study.is_dir():
        return set()
    with os.scandir(study) as entries:
        return {entry.name for entry in entries if _RUN_ID.fullmatch(entry.name) and entry.is_dir()}


def _run_state(
    ledger: Ledger,
    run: str,
    status: Status | None,
    owner: tuple[Submission, int] | None,
    answers: dict[str, Any],
) -> RunState:
    identity = _RUN_ID.fullmatch(run)
    now = RunState(
        run=run,
        study=ledger.study.name,
        name=identity["name"] if identity else run,
        seed=int(identity["seed"]) if identity else None,
        state=status.state if status else "pending",
        step=status.step if status else 0,
        num_steps=status.num_steps if status else 0,
        metrics={},
        left=None,
        job=owner[0].job_of(owner[1]) if owner else None,
        node=status.host if status else None,
        attempts=status.attempts if status else 0,
        error=(status.error or "").partition("\n")[0] or None if status else None,
        note=None,
    )
    _split_error(now)
    if _unfinished(status):
        if owner is not None:
            _place(now, owner[0], answers)
        elif now.state == "running" and now.node == os.uname().nodename and not _locked(ledger.study / run):
            now.state, now.error = "lost", "no process runs it"
        if now.state in ("lost", "timeout") and _locked(ledger.study / run):
            now.note = f"{now.error}, but a process still runs it"
            now.state, now.error = "running", None
    return now


def _split_error(run: RunState) -> None:
    """Take the state that `correct_records` put in front of a run's error."""
    kind, _, error = (run.error or "").partition(": ")
    if run.state == "failed" and kind in ("lost", "timeout", "cancelled"):
        run.state, run.error = kind, error


def _locked(folder: Path) -> bool:
    """Whether a process holds a run's lock, as far as this machine can see."""
    if not (folder / ".lock").exists():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _place(run: RunState, submission: Submission, answers: dict[str, Any]) -> None:
    try:
        past = attempts(submission.folder, run.run)
    except RecordError as error:
        past, run.note = [], str(error)
    _place_by_attempts(run, past)
    executor.get(submission.cluster).place(run, submission, past, answers[submission.cluster])
    if run.run in submission.cancelled and not run.live and run.state not in ("finished", "failed", "refused"):
        run.state, run.error = "cancelled", "cancelled by python -m sweeps.cancel"


def _place_by_attempts(run: RunState, past: Sequence[dict[str, Any]]) -> None:
    if not past and run.note is None and run.state not in ("running", "finished"):
        run.state = "queued"  # its records are those of an earlier submission
    if past and past[-1]["event"] == "start":
        run.state, run.error = "running", None
    elif past and past[-1]["verdict"] == "refused" and run.state in ("failed", "pending", "running"):
        run.state = "refused"
    elif past and past[-1]["verdict"] == "failed" and run.state == "pending":
        run.state, run.error = "failed", f"ended with status {past[-1]['status']} before it wrote a record; see its log"
    run.attempts = max(run.attempts, sum(line["event"] == "start" for line in past))


def _add_metrics(cache: StatusCache, run: RunState, status: Status) -> None:
    run.metrics = cache.metrics(run.run, status)
    if run.live and run.num_steps:
        seconds = shown_number(cache.last_metrics(run.run).get("time/step"))
        run.left = seconds * (run.num_steps - run.step) if seconds else None
