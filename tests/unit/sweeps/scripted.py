"""An executor without a scheduler: jobs are entries of a dictionary that a test changes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sweeps.executor import STRICT, Count, Executor, Handle, Number, Process, Unavailable
from sweeps.ledger import Submission
from sweeps.run_state import Job

CONFIG = "kind: scripted\nmax_parallel: 4\nranks: 1\nmax_retries: 1\nqueue: short\n"


@dataclass(frozen=True)
class ScriptedSettings:
    __pydantic_config__ = STRICT

    kind: Literal["scripted"]
    max_parallel: Count
    ranks: Count
    max_retries: Number
    queue: Literal["short", "long"]


class ScriptedExecutor(Executor):
    """`jobs` is the queue, `calls` are the requests. It answers none while `down`, and `dies` within a submission."""

    name = "the script"
    settings = ScriptedSettings
    forwards_signals = True
    requeues = False
    jobs: dict[str, Job] = {}  # noqa: RUF012
    names: dict[str, str] = {}  # noqa: RUF012
    calls: list[str] = []  # noqa: RUF012
    down = dies = False

    def _ask(self, call: str) -> None:
        self.calls.append(call)
        if self.down:
            raise Unavailable("it is down")

    def describe(self, settings: ScriptedSettings) -> str:
        return f"a script, queue {settings.queue}"

    def max_array_size(self) -> int:
        return 2

    def submit(
        self, settings: ScriptedSettings, submission: Submission, environment: Mapping[str, str]
    ) -> Iterator[Handle]:
        assert (submission.folder / "tasks.json").exists() and ".sweep" in environment["PYTHONPATH"]
        jobs: list[tuple[str, int, int]] = []
        for first in range(0, len(submission.runs), submission.portion):
            size, array = min(submission.portion, len(submission.runs) - first), str(len(self.names) + 1)
            self.names[array] = submission.id
            self.jobs |= {f"{array}_{task}": Job("waiting", "Q", reason="script") for task in range(size)}
            jobs.append((array, first, size))
            if self.dies:
                raise KeyboardInterrupt
            yield Handle(jobs)

    def recover(self, submission: Submission) -> Handle | None:
        self._ask("recover")
        arrays = [array for array, name in self.names.items() if name == submission.id]
        sizes = [sum(job.startswith(f"{array}_") for job in self.jobs) for array in arrays]
        firsts = [place * submission.portion for place in range(len(arrays))]
        return Handle(list(zip(arrays, firsts, sizes, strict=True))) if arrays else None

    def query(self, submissions: Sequence[Submission]) -> dict[str, Job]:
        self._ask("query")
        return dict(self.jobs)

    def cancel(self, submission: Submission, runs: Sequence[str]) -> None:
        self._ask("cancel")
        for run in runs:
            self.jobs[str(submission.job_of(submission.runs.index(run)))] = Job("cancelled", "C")

    def log_file(self, submission: Submission, index: int) -> Path:
        return submission.folder / "logs" / f"{index}.txt"

    def start(self, settings: Mapping[str, Any], arguments: Sequence[str]) -> Process:
        raise NotImplementedError
