"""What was submitted: `outputs/<study>/.sweep/`, which every command of this package reads and only a holder of its
lock writes.

    ledger.jsonl                   one event a line: intent, submitted, abandoned, cancelled
    finished.json                  what finished runs said at the end, to be read fast; may be deleted
    code/<hash>/                   the code and config of submissions; queued runs run from here
    submissions/<id>/
      cluster.json tasks.json      where, and the runs by their place in the array
      configs/<run_id>.yaml        their resolved configs
      attempts/<run_id>.jsonl      what became of each attempt
      logs/                        what they printed

An `intent` is written before anything is handed to a scheduler and `submitted` after, so that a submission that died
between them is found and settled by the next command.
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
from opd.records import run_dir as records
from opd.records.run_dir import RecordError


@dataclass
class Submission:
    """One submission, as the ledger tells it.

    `jobs` are (job id, first run, number of runs), empty until submitted; each is an array of at most `portion` runs.
    """

    id: str
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

    def job_of(self, place: int) -> str | None:
        """SLURM's name of the run at `place`: `<array job>_<task>`."""
        for job, first, number in self.jobs:
            if first <= place < first + number:
                return f"{job}_{place - first}"
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
        """Holds the study's lock: one submits at a time.

        Raises:
            UserError: where another command holds it for longer than `timeout` seconds.
        """
        try:
            records.make_folder(self.folder)
            with FileLock(self.folder / "lock", timeout=timeout):
                yield
        except Timeout:
            raise UserError(
                f"{self.folder / 'lock'}: another command has held it for {timeout:.0f} s; let it end"
            ) from None
        except OSError as error:
            # A write that fails does not say where, a copy says from where first.
            error.filename = error.filename2 or error.filename or str(self.folder)
            raise

    def append(self, event: str, **content: Any) -> None:
        """Writes one event, whole and to disk. A torn last line of a writer that died is ended first."""
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
        found: dict[str, Submission] = {}
        for number, event in self._events():
            try:
                _tell(found, event)
            except (KeyError, TypeError, ValueError) as error:
                wrong = f"no {error}" if isinstance(error, KeyError) else f"something else than it should ({error})"
                raise UserError(
                    f"{self.file}, line {number}: has {wrong}; mend that line or put the file back, for it alone says "
                    "which jobs are whose"
                ) from error
        return list(found.values())

    def _events(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.file.exists():
            return
        try:
            lines = self.file.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read ({error.strerror}); let it be what it was") from error
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a torn line: its writer died, and what it was about to say is settled from the rest
            if isinstance(event, dict) and "event" in event:
                yield number, event


def _tell(found: dict[str, Submission], event: Mapping[str, Any]) -> None:
    name = event["submission"]
    if event["event"] == "intent":
        keys = ("sweep", "cluster", "code", "time", "runs", "portion")
        found[name] = Submission(name, **{key: event[key] for key in keys})
        _refuse_ways_out(name, event["code"], *event["runs"])
        return
    # An intent is on disk before anything else is said of it: it cannot have been torn alone.
    if name not in found:
        raise ValueError(f"submission {name} was never begun")
    known = found[name]
    match event["event"]:
        case "submitted":
            known.jobs = [(str(int(job)), int(first), int(number)) for job, first, number in event["jobs"]]
            known.pid, known.host = event["pid"] if event["pid"] is None else int(event["pid"]), event["host"]
        case "abandoned":
            known.abandoned = event["reason"]
        case "cancelled":
            known.cancelled |= set(event["runs"])


def _refuse_ways_out(*names: str) -> None:
    """Raises ValueError for a name that is not that of a file here: a path that leads elsewhere, an option."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
            raise ValueError(f"{name!r} is no name")


def new_id() -> str:
    """A name that no other submission has."""
    return time.strftime("%Y%m%d-%H%M%S-") + os.urandom(3).hex()


def write_submission(
    folder: Path, cluster: Mapping[str, Any], runs: Sequence[str], configs: Sequence[Mapping[str, Any]], code: str
) -> None:
    """Writes what the tasks of a submission read; the ledger does not know of it yet."""
    for name in ("configs", "attempts", "logs"):
        (folder / name).mkdir(parents=True)
    for run, config in zip(runs, configs, strict=True):
        # JSON is YAML, and fast to write.
        (folder / "configs" / f"{run}.yaml").write_text(json.dumps(config))
    (folder / "cluster.json").write_text(json.dumps({**cluster, "code": code}))
    records.write_whole(folder / "tasks.json", json.dumps(list(runs)))


def read_submission(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The runs of a submission by their place, and where it went; raises `RecordError`."""
    try:
        runs = json.loads((folder / "tasks.json").read_bytes())
    except (OSError, ValueError) as error:
        raise RecordError(f"{folder / 'tasks.json'}: cannot be read ({error})") from error
    where = records.read_json(folder / "cluster.json")
    try:
        _refuse_ways_out(*runs)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{folder / 'tasks.json'}: does not list runs ({error})") from None
    if not isinstance(runs, list) or not {"kind", "max_parallel", "max_retries"} <= where.keys():
        raise RecordError(f"{folder}: tasks.json and cluster.json are not those of a submission")
    return runs, where


def attempts(folder: Path, run: str) -> list[dict[str, Any]]:
    """The events of a run's attempts under one submission, oldest first; raises `RecordError`."""
    file = folder / "attempts" / f"{run}.jsonl"
    found = list(records.read_lines(file)) if file.exists() else []
    for line in found:
        if missing := _ATTEMPT.get(line.get("event", ""), {"event"}) - line.keys():
            raise RecordError(f"{file}: a line has no {min(missing)!r}")
    return found


_ATTEMPT = {"start": set(), "end": {"status", "verdict"}}
