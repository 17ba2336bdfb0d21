"""One run of a submission, watched: `python -m sweeps.task SUBMISSION FIRST [TASK]`, on the node that it was given.

The run is the one at place FIRST + TASK of the submission.

Starts the run's ranks, waits, writes down what became of them, and decides what is next: a run that was preempted or
whose time was up goes back to the queue, one whose process was killed is tried again, one that was refused is not.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opd.records import run_dir as records
from opd.records.recorded import confirmations
from opd.records.run_dir import RunDir
from sweeps import cli, slurm
from sweeps.forked import Forked
from sweeps.ledger import Ledger, attempts, read_submission

PREEMPTED, REFUSED = 75, 2  # opd.train's exit statuses

Verdict = Literal["finished", "left", "requeue", "retry", "refused", "failed"]


@dataclass(frozen=True)
class Task:
    """A run at a place of a submission; `confirmed` permits what its config alone may not ask for."""

    submission: Path
    run: str
    config: Path
    folder: RunDir
    cluster: dict[str, Any]
    confirmed: list[str]

    @classmethod
    def read(cls, submission: Path, place: int) -> "Task":
        """Raises `RecordError` where the submission is damaged."""
        runs, where = read_submission(submission)
        if place >= len(runs):
            raise records.RecordError(f"{submission / 'tasks.json'}: has no run at place {place}")
        config = submission / "configs" / f"{runs[place]}.yaml"
        content = records.read_json(config)
        try:
            folder = Path(content["paths"]["outputs"]) / content["study"] / runs[place]
        except (KeyError, TypeError):
            raise records.RecordError(f"{config}: is not the config of a run") from None
        return cls(submission, runs[place], config, RunDir(folder), where, confirmations(content))

    def start(self) -> "subprocess.Popen | Forked":
        """Starts the run's ranks. On this machine they are a process group, whose number is the `pid`."""
        # Whoever submitted it has named the variable, or said that it is meant.
        run = [f"config={self.config}", *self.confirmed]
        start = ["-m", "opd.train", *run]
        if self.cluster["kind"] == "slurm":
            python = self.cluster["python"] or sys.executable
            # SLURM signals a job's steps itself.
            command = ["srun", "--kill-on-bad-exit=1", python, "-P", *start]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL)
        if self.cluster["ranks"] > 1:
            ranks = f"--nproc-per-node={self.cluster['ranks']}"
            command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", ranks, *start]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        return Forked("opd.train", run)

    def note(self, event: str, **content: Any) -> None:
        """Appends to the run's attempts."""
        line = {"event": event, "time": records.now(), "host": socket.gethostname(), **content}
        with open(self.submission / "attempts" / f"{self.run}.jsonl", "ab") as file:
            file.write((json.dumps(line) + "\n").encode())

    def state(self) -> tuple[str, int]:
        """State and step by the run's own records."""
        try:
            status = self.folder.status()
        except records.RecordError:
            return "", 0
        return status.state, status.step

    def was_refused(self) -> bool:
        """Whether its records give a sentence as the reason of its failure, and not an exception."""
        error = self.folder.status().error or "" if self.state()[0] == "failed" else ""
        return bool(error) and not re.match(r"\w+(Error|Exception|Interrupt|Exit)\b", error)


def verdict(task: Task, status: int, *, ended_from_outside: bool, progress: bool) -> Verdict:
    """What is to be done about an attempt that ended with this exit status (negative for a signal)."""
    state = task.state()[0]
    past = [line["verdict"] for line in attempts(task.submission, task.run) if line["event"] == "end"]
    if state == "finished":
        return "finished"
    if ended_from_outside:
        return "left"
    if status == PREEMPTED or state == "preempted":
        limit = task.cluster.get("max_requeues", 0)
        return "requeue" if past.count("requeue") < limit else "left"
    # srun ends the other ranks of one that failed, and gives their status.
    ended_by_srun = status == 128 + signal.SIGTERM
    if status == REFUSED or (ended_by_srun and task.was_refused()):
        return "refused"
    killed = status < 0 or (status > 128 and not ended_by_srun) or state != "failed"
    return "retry" if (killed or progress) and past.count("retry") < task.cluster["max_retries"] else "failed"


def attempt(task: Task, asked: list[int]) -> Verdict:
    """One attempt; `asked` are the signals so far that ask to leave, which are passed on to the run."""
    # SLURM signals a job's steps itself, and this process beside them when it ends the job.
    on_slurm, child = task.cluster["kind"] == "slurm", None

    def note(number: int, _: object) -> None:
        asked.append(number)
        if child is not None and not on_slurm:
            os.killpg(child.pid, number)

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, note)
    before = task.state()[1]
    task.note("start", pid=os.getpid(), job_id=os.environ.get("SLURM_JOB_ID"))
    child = task.start()
    if asked and not on_slurm:
        os.killpg(child.pid, asked[0])
    status = child.wait()
    found = verdict(task, status, ended_from_outside=signal.SIGTERM in asked, progress=task.state()[1] > before)
    task.note("end", status=status, verdict=found, step=task.state()[1])
    if found in ("retry", "failed") and task.state()[0] == "running":
        _settle(task, status)
    return found


def _settle(task: Task, status: int) -> None:
    """Its records still call a run running that has ended without a word."""
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    task.folder.update_status(state="failed", error=f"lost: its process ended with {how}, without a word")


def abandoned(submission: Path) -> bool:
    """Whether the command that made this submission died, and a later one has settled what it left."""
    found = {one.id: one for one in Ledger(submission.parent.parent.parent).submissions()}.get(submission.name)
    return found is None or found.abandoned is not None


def main(submission: Path, place: int) -> int:
    """Attempts until there is nothing more to do here; returns the exit status of the job."""
    task, asked = Task.read(submission, place), []
    if abandoned(submission):
        print(f"sweeps: {task.run}: its submission was given up; another holds it", flush=True)
        return 0
    while True:
        found = attempt(task, asked)
        print(f"sweeps: {task.run}: {found}", flush=True)
        if found not in ("requeue", "retry"):
            return {"finished": 0, "left": PREEMPTED, "refused": REFUSED, "failed": 1}[found]
        if task.cluster["kind"] == "slurm" and requeued(task, asked):
            return PREEMPTED


def requeued(task: Task, asked: list[int]) -> bool:
    """Asks SLURM to put this job back into its queue, and waits for the signal by which SLURM then ends this process:
    to leave before it would end the job. False where SLURM refuses.
    """
    before, refusal = len(asked), None
    try:
        slurm.requeue_this_job()
    except slurm.Unanswered as error:
        refusal = error  # or SLURM has heard it: what ends this process then ends scontrol too, a moment before
    for _ in range(25 if refusal else 300):
        if len(asked) > before:
            return True
        time.sleep(0.2)
    if refusal:
        print(f"sweeps: {task.run}: cannot be requeued ({refusal}); going on here", flush=True)
    return refusal is None


def command(arguments: Sequence[str]) -> None:
    """`SUBMISSION FIRST [TASK]`: ends this process with the status of the job."""
    sys.exit(main(Path(arguments[0]), sum(map(int, arguments[1:]))))


def logged(log: Path, *arguments: str) -> None:
    """The command as the whole of a process, which writes to `log` all that it says."""
    with open(log, "ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.argv[1:] = arguments
    _run()


def _run() -> None:
    cli.run(command)


if __name__ == "__main__":
    _run()
