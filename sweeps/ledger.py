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
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from opd.errors import UserError
from opd.records import files as records
from opd.records.files import RecordError


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
        submissions: dict[str, Submission] = {}
        for number, event in self._events():
            try:
                self._apply(submissions, event)
            except (KeyError, TypeError, ValueError) as error:
                wrong = f"no {error}" if isinstance(error, KeyError) else f"a wrong value ({error})"
                raise UserError(
                    f"{self.file}, line {number}: has {wrong}; repair that line or restore the file, the only record "
                    "of which jobs belong to which runs"
                ) from error
        return list(submissions.values())

    def submission(self, name: str) -> Submission | None:
        """The submission with this id; raises `UserError` for a ledger that is damaged."""
        return next((one for one in self.submissions() if one.id == name), None)

    def owners(self) -> dict[str, tuple[Submission, int]]:
        """Each run's last submission that was not abandoned, and its index there; raises `UserError`."""
        kept = [one for one in self.submissions() if one.abandoned is None]
        return {run: (one, index) for one in kept for index, run in enumerate(one.runs)}

    def _events(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.file.exists():
            return
        try:
            lines = self.file.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read ({error.strerror}); restore the file") from error
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
            except ValueError:
                continue  # torn by a writer that died; `recover` finds out what it was about to record
            if isinstance(event, dict) and "event" in event:
                yield number, event

    def _apply(self, submissions: dict[str, Submission], event: Mapping[str, Any]) -> None:
        name = event["submission"]
        if event["event"] == "intent":
            keys = ("sweep", "cluster", "code", "time", "runs", "portion")
            submissions[name] = Submission(name, self.submission_folder(name), **{key: event[key] for key in keys})
            _check_names(name, event["code"], *event["runs"])
            return
        # The intent was flushed to disk before any other event of a submission, so it cannot be the torn line.
        if name not in submissions:
            raise ValueError(f"submission {name} has no intent")
        known = submissions[name]
        match event["event"]:
            case "submitted":
                known.jobs = [(str(int(job)), int(first), int(number)) for job, first, number in event["jobs"]]
                known.pid, known.host = event["pid"] if event["pid"] is None else int(event["pid"]), event["host"]
            case "abandoned":
                known.abandoned = event["reason"]
            case "cancelled":
                known.cancelled |= set(event["runs"])


def _check_names(*names: str) -> None:
    """Raise ValueError for anything but a plain file name: a path that leads elsewhere, an option."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
            raise ValueError(f"{name!r} is not a valid name")


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
    try:
        runs = json.loads((folder / "tasks.json").read_bytes())
    except (OSError, ValueError) as error:
        raise RecordError(f"{folder / 'tasks.json'}: cannot be read ({error})") from error
    settings = records.read_json(folder / "cluster.json")
    try:
        _check_names(*runs)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{folder / 'tasks.json'}: is not a list of runs ({error})") from None
    if not isinstance(runs, list) or not {"kind", "max_parallel", "max_retries"} <= settings.keys():
        raise RecordError(f"{folder}: its tasks.json and cluster.json do not describe a submission")
    return runs, settings


def attempts(folder: Path, run: str) -> list[dict[str, Any]]:
    """The events of a run's attempts in one submission, oldest first; raises `RecordError`."""
    file = folder / "attempts" / f"{run}.jsonl"
    events = list(records.read_lines(file)) if file.exists() else []
    for event in events:
        if missing := _ATTEMPT.get(event.get("event", ""), {"event"}) - event.keys():
            raise RecordError(f"{file}: a line has no {min(missing)!r}")
    return events


_ATTEMPT = {"start": set(), "end": {"status", "verdict"}}
