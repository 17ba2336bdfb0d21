"""The submissions of a study, in `outputs/<study>/.sweep/`: every command reads it, only a holder of its lock writes.

    ledger.jsonl                   one event per line: intent, submitted, abandoned, cancelled
    finished.json                  cache of the status of finished runs; may be deleted
    code/<hash>/                   copies of code and conf; queued runs run from here
    submissions/<id>/
      cluster.json tasks.json      settings of the cluster, and the runs by their index in the array
      configs/<run_id>.yaml        their resolved configs
      attempts/<run_id>.jsonl      start and end of each attempt
      logs/                        what they printed

`intent` is written before anything is handed to a scheduler and `submitted` after it, so that the next command finds
and recovers a submission whose command died in between.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import Field

from opd.errors import UserError
from opd.records import files as records
from opd.records.files import Count, RecordError


@dataclass
class Submission:
    """One submission, by the ledger's events.

    `jobs` are (job id, first run, number of runs), empty until submitted; each is an array of at most `portion` runs.
    """

    id: str
    folder: Path
    sweep: str
    cluster: str
    code: str
    time: str
    runs: list[str]
    portion: int
    jobs: list[tuple[str, int, int]] = field(default_factory=list)
    pid: int | None = None
    host: str | None = None
    abandoned: str | None = None
    cancelled: set[str] = field(default_factory=set)

    @property
    def submitted(self) -> bool:
        return bool(self.jobs) or self.pid is not None

    def job_of(self, index: int) -> str | None:
        """The job of the run at `index`, `<array job>_<task>`; None without one."""
        for job, first, number in self.jobs:
            if first <= index < first + number:
                return f"{job}_{index - first}"
        return None


@dataclass(frozen=True)
class Ledger:
    """The submissions of one study."""

    study: Path

    @property
    def folder(self) -> Path:
        return self.study / ".sweep"

    @property
    def file(self) -> Path:
        return self.folder / "ledger.jsonl"

    def submission_folder(self, submission: str) -> Path:
        return self.folder / "submissions" / submission

    @contextmanager
    def lock(self, timeout: float = 120.0) -> Iterator[None]:
        """Hold the study's lock, so that one command writes at a time.

        Raises:
            UserError: where another command holds it for longer than `timeout` seconds.
        """
        try:
            records.make_folder(self.folder)
            with FileLock(self.folder / "lock", timeout=timeout):
                yield
        except Timeout:
            raise UserError(
                f"{self.folder / 'lock'}: another command has held it for {timeout:.0f} s; wait for it to end"
            ) from None
        except OSError as error:
            # A failed write names no file, and a failed copy names its source first.
            error.filename = error.filename2 or error.filename or str(self.folder)
            raise

    def append(self, event: str, **content: Any) -> None:
        """Append one event and flush it to disk, after ending the torn last line of a writer that died."""
        line = json.dumps({"event": event, "time": records.now(), **content}) + "\n"
        content_before = self.file.read_bytes() if self.file.exists() else b""
        torn = bool(content_before) and not content_before.endswith(b"\n")
        with open(self.file, "ab") as file:
            file.write((("\n" if torn else "") + line).encode())
            file.flush()
            os.fsync(file.fileno())

    def submissions(self) -> list[Submission]:
        """Every submission, oldest first.

        Raises:
            UserError: for a ledger that is damaged.
        """
        submissions, damage = self.intact_submissions()
        if damage:
            raise UserError(
                f"{damage[0]}; repair that line or restore the file, the only record of which jobs belong to which runs"
            )
        return submissions

    def intact_submissions(self) -> tuple[list[Submission], list[str]]:
        """`submissions` as far as the ledger can be read, and what is wrong with the rest of it."""
        submissions, damage = dict[str, Submission](), list[str]()
        try:
            for number, event in self._events():
                try:
                    self._apply(submissions, event, f"{self.file}, line {number}")
                except RecordError as error:
                    damage.append(str(error))
        except RecordError as error:
            damage.append(str(error))
        return list(submissions.values()), damage

    def submission(self, name: str) -> Submission | None:
        """The submission with this id; raises `UserError` for a ledger that is damaged."""
        return next((one for one in self.submissions() if one.id == name), None)

    def owners(self) -> dict[str, tuple[Submission, int]]:
        """`owners` of the ledger's submissions; raises `UserError` for one that is damaged."""
        return owners(self.submissions())

    def _events(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.file.exists():
            return
        for number, line in enumerate(records.read_bytes(self.file).split(b"\n"), 1):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn by a writer that died; `recover` finds out what it was about to record
            if isinstance(event, dict) and "event" in event:
                yield number, event

    def _apply(self, submissions: dict[str, Submission], event: Mapping[str, Any], place: str) -> None:
        which = records.as_record(_Event, event, place)
        if which.event == "intent":
            intent = records.as_record(_Intent, event, place)
            submissions[which.submission] = Submission(
                which.submission, self.submission_folder(which.submission), **vars(intent)
            )
            return
        # The intent was flushed to disk before any other event of a submission, so it cannot be the torn line.
        if which.submission not in submissions:
            raise RecordError(f"{place}: submission {which.submission} has no intent")
        known = submissions[which.submission]
        match which.event:
            case "submitted":
                handle = records.as_record(_Submitted, event, place)
                known.jobs, known.pid, known.host = handle.jobs, handle.pid, handle.host
            case "abandoned":
                known.abandoned = records.as_record(_Abandoned, event, place).reason
            case "cancelled":
                known.cancelled |= set(records.as_record(_Cancelled, event, place).runs)


# ---- events, as they are in the file

# A plain file name: no path that leads elsewhere, no option. A job of SLURM: a number.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
JobId = Annotated[str, Field(pattern=r"^[0-9]+$")]


@dataclass(frozen=True)
class _Event:
    event: str
    submission: Name


@dataclass(frozen=True)
class _Intent:
    sweep: str
    cluster: str
    code: Name
    time: str
    runs: list[Name]
    portion: Count


@dataclass(frozen=True)
class _Submitted:
    jobs: list[tuple[JobId, Count, Count]]
    pid: Count | None
    host: str | None


@dataclass(frozen=True)
class _Abandoned:
    reason: str


@dataclass(frozen=True)
class _Cancelled:
    runs: list[Name]


def owners(submissions: Sequence[Submission]) -> dict[str, tuple[Submission, int]]:
    """Each run's last submission that was not abandoned, and its index there."""
    kept = [one for one in submissions if one.abandoned is None]
    return {run: (one, index) for one in kept for index, run in enumerate(one.runs)}


def new_id() -> str:
    """A new submission's id."""
    return time.strftime("%Y%m%d-%H%M%S-") + os.urandom(3).hex()


def write_submission(
    folder: Path, cluster: Mapping[str, Any], runs: Sequence[str], configs: Sequence[Mapping[str, Any]], code: str
) -> None:
    """Write what the tasks of a submission read."""
    for name in ("configs", "attempts", "logs"):
        (folder / name).mkdir(parents=True)
    for run, config in zip(runs, configs, strict=True):
        # JSON is valid YAML, and fast to write.
        (folder / "configs" / f"{run}.yaml").write_text(json.dumps(config))
    (folder / "cluster.json").write_text(json.dumps({**cluster, "code": code}))
    records.write_atomic(folder / "tasks.json", json.dumps(list(runs)))


def read_submission(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The runs of a submission by index, and its cluster's settings; raises `RecordError`."""
    file = folder / "tasks.json"
    try:
        content = json.loads(records.read_bytes(file))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{file}: {error if isinstance(error, RecordError) else 'is not JSON'}") from error
    settings = records.read_json(folder / "cluster.json")
    records.as_record(_Settings, settings, str(folder / "cluster.json"))
    return records.as_record(_Tasks, {"runs": content}, str(file)).runs, settings


@dataclass(frozen=True)
class _Tasks:
    runs: list[Name]


@dataclass(frozen=True)
class _Settings:
    kind: str
    max_parallel: Count
    max_retries: Count


def attempts(folder: Path, run: str) -> list[dict[str, Any]]:
    """The events of a run's attempts in one submission, oldest first; raises `RecordError`."""
    file = folder / "attempts" / f"{run}.jsonl"
    events = list(records.read_lines(file)) if file.exists() else []
    for number, event in enumerate(events, 1):
        kind = _End if event.get("event") == "end" else _Start
        records.as_record(kind, event, f"{file}, line {number}")
    return events


@dataclass(frozen=True)
class _Start:
    event: Literal["start"]


@dataclass(frozen=True)
class _End:
    status: Annotated[int, Field(strict=True)]
    verdict: str
