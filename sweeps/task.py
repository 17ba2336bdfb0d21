"""One run of a submission: `python -m sweeps.task SUBMISSION FIRST [TASK]`, on its node.

Runs the one at index FIRST + TASK. Starts its ranks, waits for them, records the outcome of the attempt, and decides
what follows: a run that was preempted or ran out of time is requeued, one whose process was killed is retried, a
refused one is not.
"""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opd.printable import say
from opd.records import files as records
from opd.records.config_argument import confirmations
from opd.records.run_dir import RunDir
from sweeps import cli, executor
from sweeps.executor import Executor, Process
from sweeps.ledger import Ledger, attempts, read_submission

PREEMPTED, REFUSED = 75, 2  # opd.train's exit statuses

Verdict = Literal["finished", "left", "requeue", "retry", "refused", "failed"]


@dataclass(frozen=True)
class Task:
    """A run of a submission. `confirmed` are the arguments that permit what its config alone may not ask for."""

    submission: Path
    run: str
    config: Path
    folder: RunDir
    settings: dict[str, Any]
    confirmed: list[str]

    @classmethod
    def read(cls, submission: Path, index: int) -> "Task":
        """The run at `index` of a submission's folder; raises `RecordError` where that is damaged."""
        runs, settings = read_submission(submission)
        if index >= len(runs):
            raise records.RecordError(f"{submission / 'tasks.json'}: has no run at index {index}")
        config = submission / "configs" / f"{runs[index]}.yaml"
        content = records.read_json(config)
        try:
            folder = Path(content["paths"]["outputs"]) / content["study"] / runs[index]
        except (KeyError, TypeError):
            raise records.RecordError(f"{config}: is not the config of a run") from None
        return cls(submission, runs[index], config, RunDir(folder), settings, confirmations(content))

    @property
    def executor(self) -> Executor:
        return executor.get(self.settings["kind"])

    def start(self) -> Process:
        """Start the run's ranks."""
        # The run was submitted with these arguments too, or with --as-submitted.
        return self.executor.start(self.settings, [f"config={self.config}", *self.confirmed])

    def record(self, event: str, **content: Any) -> None:
        """Append an event to the run's attempts."""
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
        """Whether the error in its records is a sentence and not an exception."""
        error = self.folder.status().error or "" if self.state()[0] == "failed" else ""
        return bool(error) and not re.match(r"\w+(Error|Exception|Interrupt|Exit)\b", error)


def verdict(task: Task, status: int, *, terminated: bool, progress: bool) -> Verdict:
    """Decide what follows an attempt with this exit status (negative for a signal).

    `terminated`: the task got SIGTERM. `progress`: the run got further than before.
    """
    state = task.state()[0]
    past = [line["verdict"] for line in attempts(task.submission, task.run) if line["event"] == "end"]
    if state == "finished":
        return "finished"
    if terminated:
        return "left"
    if status == PREEMPTED or state == "preempted":
        limit = task.settings.get("max_requeues", 0)
        return "requeue" if past.count("requeue") < limit else "left"
    # srun ends the other ranks when one fails, and returns their status.
    ended_by_srun = status == 128 + signal.SIGTERM
    if status == REFUSED or (ended_by_srun and task.was_refused()):
        return "refused"
    killed = status < 0 or (status > 128 and not ended_by_srun) or state != "failed"
    return "retry" if (killed or progress) and past.count("retry") < task.settings["max_retries"] else "failed"


def attempt(task: Task, signals: list[int]) -> Verdict:
    """Run one attempt; the signals to save and leave that arrive meanwhile are added to `signals`."""
    forward, child = task.executor.forwards_signals, None

    def on_signal(number: int, _: object) -> None:
        signals.append(number)
        if child is not None and forward:
            os.killpg(child.pid, number)

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, on_signal)
    before = task.state()[1]
    task.record("start", pid=os.getpid(), job_id=task.executor.job_id())
    child = task.start()
    if signals and forward:
        os.killpg(child.pid, signals[0])
    status = child.wait()
    outcome = verdict(task, status, terminated=signal.SIGTERM in signals, progress=task.state()[1] > before)
    task.record("end", status=status, verdict=outcome, step=task.state()[1])
    if outcome in ("retry", "failed") and task.state()[0] == "running":
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        task.folder.update_status(state="failed", error=f"lost: its process ended with {how} and left no error")
    return outcome


def main(folder: Path, index: int) -> int:
    """Attempt a run until nothing more is to be done here; the exit status of the job."""
    task, signals = Task.read(folder, index), []
    os.environ["OPD_SUBMITTED"] = "1"  # the run records its start, and a refusal
    submission = Ledger(folder.parent.parent.parent).submission(folder.name)
    if submission is None or submission.abandoned is not None:
        say(f"sweeps: {task.run}: its submission was abandoned; another one has this run")
        return 0
    while True:
        outcome = attempt(task, signals)
        say(f"sweeps: {task.run}: {outcome}")
        if outcome not in ("requeue", "retry"):
            return {"finished": 0, "left": PREEMPTED, "refused": REFUSED, "failed": 1}[outcome]
        if task.executor.requeues and requeue(task, signals):
            return PREEMPTED


def requeue(task: Task, signals: list[int]) -> bool:
    """Requeue this task and wait for the signal by which the scheduler ends it: leave before it would end the job.

    False where the scheduler refuses.
    """
    before, refusal = len(signals), None
    try:
        task.executor.requeue()
    except executor.Unavailable as error:
        refusal = error  # or the request arrived, and its command was ended with this task, a moment before it
    for _ in range(25 if refusal else 300):
        if len(signals) > before:
            return True
        time.sleep(0.2)
    if refusal:
        say(f"sweeps: {task.run}: cannot be requeued ({refusal}); continuing here")
    return refusal is None


def command(arguments: Sequence[str]) -> None:
    """`SUBMISSION FIRST [TASK]`: end this process with the status of the job."""
    sys.exit(main(Path(arguments[0]), sum(map(int, arguments[1:]))))


def logged(log: Path, *arguments: str) -> None:
    """Run the command in this process, with all its output in `log`."""
    with open(log, "ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.argv[1:] = arguments
    cli.run(command)


if __name__ == "__main__":
    cli.run(command)
