"""The interface between sweeps and what runs them, and the registry of executors by `cluster.kind`.

A new scheduler takes a module with its settings (a dataclass) and its `Executor`, a line in `EXECUTORS`, and a
`conf/cluster/NAME.yaml`. Its module is imported on first use, by every command, and so should not import what is slow.
"""

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from opd.errors import UserError
from sweeps.ledger import Submission
from sweeps.run_state import RunState, place_job

EXECUTORS = {"local": "sweeps.local.LocalExecutor", "slurm": "sweeps.slurm.SlurmExecutor"}


class Limits:
    """Limits on a setting, named as in pydantic's core schema. Unlike `pydantic.Field` it imports nothing."""

    def __init__(self, **limits: Any) -> None:
        self.limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        return handler(source) | self.limits


STRICT = {"strict": True, "extra": "forbid"}  # the `__pydantic_config__` of settings
Count = Annotated[int, Limits(ge=1)]
Number = Annotated[int, Limits(ge=0)]
Text = Annotated[str, Limits(min_length=1)]
Line = Annotated[str, Limits(pattern=r"^[^\x00-\x1f\x7f]+$")]
Option = Annotated[str, Limits(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


class Settings(Protocol):
    """What all settings have, in fields or properties; `ranks` is the number of processes per run."""

    @property
    def kind(self) -> str: ...

    @property
    def max_parallel(self) -> int: ...

    @property
    def max_retries(self) -> int: ...

    @property
    def ranks(self) -> int: ...


class Process(Protocol):
    """The part of `subprocess.Popen` that a task uses."""

    @property
    def pid(self) -> int: ...

    def wait(self) -> int: ...


class Unavailable(Exception):
    """The scheduler's commands are missing, fail or do not answer; the text says how."""


@dataclass(frozen=True)
class Handle:
    """What the ledger records about a submission that was handed over: arrays of jobs, or a process."""

    jobs: list[tuple[str, int, int]] = field(default_factory=list)
    pid: int | None = None
    host: str | None = None


class Executor(ABC):
    """What a scheduler must do. Instances hold no state: any command may ask about any earlier submission.

    `name` is the scheduler's name in messages. `forwards_signals`: a task passes the signals that it gets on to its
    run's process group, because the scheduler signals the task alone. `requeues`: `requeue` may be called.
    """

    name: str
    settings: type[Settings]
    forwards_signals: bool
    requeues: bool

    # ---- settings

    def check(self, settings: Any) -> None:
        """Raise `UserError` for settings that contradict each other."""
        return None

    @abstractmethod
    def describe(self, settings: Any) -> str:
        """Where runs will run, as the plan of a sweep shows it."""

    def device(self, settings: Any) -> str:
        """What a rank occupies, as in "GPU-hours"."""
        return "CPU-rank"

    def commands(self, settings: Any) -> list[str]:
        """The keys of settings that hold commands or options which could run any program."""
        return []

    # ---- submissions

    def max_array_size(self) -> int | None:
        """The largest number of runs in one array, None without a limit. Raises `UserError` where it cannot submit."""
        return None

    @abstractmethod
    def submit(self, settings: Any, submission: Submission, environment: Mapping[str, str]) -> Iterator[Handle]:
        """Start `python -P -m sweeps.task FOLDER INDEX` for every run, or hand it to the scheduler.

        `environment` makes a process import the submission's copy of the code. Yields what has been handed over so
        far each time that this grows; the ledger records it before the next step. Raises `UserError`.
        """

    @abstractmethod
    def recover(self, submission: Submission) -> Handle | None:
        """What was handed over of a submission whose command died before recording it; raises `Unavailable`."""

    @abstractmethod
    def query(self, submissions: Sequence[Submission]) -> Any:
        """Ask once about all these submissions; the answer is for `place`, here a `Job` by its id.

        Raises `Unavailable`.
        """

    def place(self, run: RunState, submission: Submission, attempts: Sequence[dict], answer: Any) -> None:
        """Correct the state of an unfinished run by the scheduler's answer, None where it did not answer.

        `run.state` is what its records and `attempts`, the events of its tasks, say.
        """
        if run.job is None:
            run.state = "pending" if run.state == "queued" else run.state
        elif answer is not None:
            place_job(run, self.name, answer.get(run.job), attempts)

    @abstractmethod
    def cancel(self, submission: Submission, runs: Sequence[str]) -> None:
        """End these runs of a submission, queued or running; raises `Unavailable`."""

    @abstractmethod
    def log_file(self, submission: Submission, index: int) -> Path:
        """The file that the run at `index` prints to."""

    # ---- within a task

    @abstractmethod
    def start(self, settings: Mapping[str, Any], arguments: Sequence[str]) -> Process:
        """Start `python -m opd.train ARGUMENTS` on all ranks; `settings` are as recorded, maybe by another version."""

    def job_id(self) -> str | None:
        """The scheduler's id of the job that this process is in, for the records."""
        return None

    def requeue(self) -> None:
        """Ask the scheduler to put this task back into its queue; it then ends the task. Raises `Unavailable`."""
        raise NotImplementedError


@functools.cache
def _load(path: str) -> Executor:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)()


def get(kind: Any) -> Executor:
    """The executor for `cluster.kind`; raises `UserError` if there is none."""
    if not isinstance(kind, str) or kind not in EXECUTORS:
        raise UserError(f"cluster.kind={kind!r}: should be {' or '.join(map(repr, EXECUTORS))}")
    return _load(EXECUTORS[kind])
