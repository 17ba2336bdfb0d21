"""SLURM: its settings, `conf/cluster/slurm.yaml`, and its executor. A submission is one job array, or several."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opd.errors import UserError
from sweeps import slurm_commands
from sweeps.executor import STRICT, Count, Executor, Handle, Line, Number, Option, Text
from sweeps.ledger import Submission
from sweeps.run_state import Job

# Options of sbatch that the submission itself sets.
_RESERVED = {
    "array", "job-name", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "dependency", "nodes",
    "ntasks", "ntasks-per-node", "time", "partition", "account", "qos", "constraint", "mem", "cpus-per-task",
    "gpus-per-task", "wrap", "parsable",
}  # fmt: skip


@dataclass(frozen=True)
class SlurmSettings:
    """A SLURM cluster. `sbatch` holds further options of sbatch, `setup` shell commands before a run."""

    __pydantic_config__ = STRICT

    kind: Literal["slurm"]
    max_parallel: Count
    nodes: Count
    ranks_per_node: Count
    gpus_per_rank: Number
    cpus_per_rank: Count
    mem: Line | None
    time: Count
    signal_before: Count
    partition: Line | None
    account: Line | None
    qos: Line | None
    constraint: Line | None
    sbatch: dict[Option, Line | int | bool]
    setup: list[Text]
    python: Line | None
    max_retries: Number
    max_requeues: Number

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


class SlurmExecutor(Executor):
    """Submits job arrays; SLURM signals, ends and requeues their tasks."""

    name = "SLURM"
    settings = SlurmSettings
    forwards_signals = False
    requeues = True

    def check(self, settings: SlurmSettings) -> None:
        if clash := sorted(_RESERVED & {key.replace("_", "-") for key in settings.sbatch}):
            own = clash[0].replace("-", "_")
            instead = f"set cluster.{own} instead" if hasattr(settings, own) else "leave it out"
            raise UserError(f"cluster.sbatch.{clash[0]}: the submission sets this itself; {instead}")
        if settings.signal_before >= settings.time * 60:
            raise UserError(
                f"cluster.signal_before={settings.signal_before}: must be less than the {settings.time * 60} s of "
                f"cluster.time={settings.time} min, or a run is signalled to save before it starts"
            )
        if settings.gpus_per_rank > 1:
            raise UserError(f"cluster.gpus_per_rank={settings.gpus_per_rank}: a rank uses one GPU; add ranks_per_node")

    def describe(self, settings: SlurmSettings) -> str:
        size = f"SLURM, {settings.nodes} nodes × {settings.ranks_per_node} ranks a run, {settings.time} min"
        partition = f", partition {settings.partition}" if settings.partition else ""
        return f"{size}{partition}, {settings.max_parallel} at once"

    def device(self, settings: SlurmSettings) -> str:
        return "GPU" if settings.gpus_per_rank else "CPU-rank"

    def commands(self, settings: SlurmSettings) -> list[str]:
        return [key for key in ("setup", "python", "sbatch") if getattr(settings, key)]

    def max_array_size(self) -> int:
        return slurm_commands.max_array_size()

    def submit(
        self, settings: SlurmSettings, submission: Submission, environment: Mapping[str, str]
    ) -> Iterator[Handle]:
        folder = submission.folder.absolute()
        jobs: list[tuple[str, int, int]] = []
        for name, first, size in _arrays(submission):
            command = [settings.python or sys.executable, "-P", "-m", "sweeps.task", str(folder), str(first)]
            after = jobs[-1][0] if jobs else None
            job = slurm_commands.submit(
                settings, name=name, command=command, environment=environment, folder=folder, size=size, after=after
            )
            jobs.append((job, first, size))
            yield Handle(jobs)

    def recover(self, submission: Submission) -> Handle | None:
        arrays = [(slurm_commands.find(name), first, size) for name, first, size in _arrays(submission)]
        # The newest of a name: an older one was cancelled before it was submitted again.
        jobs = [(ids[-1], first, size) for ids, first, size in arrays if ids]
        return Handle(jobs) if jobs else None

    def query(self, submissions: Sequence[Submission]) -> dict[str, Job]:
        return slurm_commands.jobs(job for submission in submissions for job, _, _ in submission.jobs)

    def cancel(self, submission: Submission, runs: Sequence[str]) -> None:
        slurm_commands.cancel([job for run in runs if (job := submission.job_of(submission.runs.index(run)))])

    def log_file(self, submission: Submission, index: int) -> Path:
        return submission.folder / "logs" / f"{submission.job_of(index)}.log"

    def start(self, settings: Mapping[str, Any], arguments: Sequence[str]) -> subprocess.Popen:
        python = settings["python"] or sys.executable
        command = ["srun", "--kill-on-bad-exit=1", python, "-P", "-m", "opd.train", *arguments]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def job_id(self) -> str | None:
        return os.environ.get("SLURM_JOB_ID")

    def requeue(self) -> None:
        slurm_commands.requeue_this_task()


def _arrays(submission: Submission) -> Iterator[tuple[str, int, int]]:
    """Name, first run and number of runs of each array of a submission."""
    number = len(submission.runs)
    for place, first in enumerate(range(0, number, submission.portion)):
        yield f"opd-{submission.id}-{place}", first, min(submission.portion, number - first)
