"""This machine: its settings, `conf/cluster/local.yaml`, its executor, and the runner of a submission.

`python -m sweeps.local SUBMISSION` outlives the terminal that started it. Runs of one rank are forked from a server
that has imported what they need; importing takes most of the start of a short run.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from opd.errors import UserError
from opd.records.files import write_atomic
from sweeps.executor import STRICT, Count, Executor, Handle, Number
from sweeps.forked import Forked
from sweeps.ledger import Ledger, Submission, read_submission
from sweeps.run_state import RunState, to_retry

POLL = 0.2  # seconds between checks of the processes
PRELOAD = ("opd.step.assemble", "opd.step.loop", "opd.records.model_card", "opd.train", "opd.step.observers")


@dataclass(frozen=True)
class LocalSettings:
    """This machine. `ranks` are the processes of a run."""

    __pydantic_config__ = STRICT

    kind: Literal["local"]
    max_parallel: Count
    ranks: Count
    max_retries: Number


class LocalExecutor(Executor):
    """Starts a runner for each submission, detached from the terminal."""

    name = "this machine"
    settings = LocalSettings
    forwards_signals = True
    requeues = False

    def describe(self, settings: LocalSettings) -> str:
        return f"this machine, {settings.ranks} ranks a run, {settings.max_parallel} at once"

    def submit(
        self, settings: LocalSettings, submission: Submission, environment: Mapping[str, str]
    ) -> Iterator[Handle]:
        with open(submission.folder / "logs" / "runner.log", "ab") as log:
            runner = subprocess.Popen(
                [sys.executable, "-P", "-m", "sweeps.local", str(submission.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | environment,
            )
        yield Handle(pid=runner.pid, host=os.uname().nodename)

    def recover(self, submission: Submission) -> Handle | None:
        # A runner that has ended has left attempts.
        begun = runner_alive(submission) or any((submission.folder / "attempts").glob("*"))
        return Handle(pid=0, host=os.uname().nodename) if begun else None

    def query(self, submissions: Sequence[Submission]) -> set[str]:
        """The ids of the submissions whose runner is alive."""
        return {submission.id for submission in submissions if runner_alive(submission)}

    def place(self, run: RunState, submission: Submission, attempts: Sequence[dict], answer: Any) -> None:
        if submission.id in answer:
            if run.run in submission.cancelled and run.state == "queued":
                run.state = "cancelled"
            elif to_retry(attempts):
                run.state, run.error = "queued", None
        elif not submission.submitted:
            run.state = "pending" if run.state == "queued" else run.state
        elif run.live or to_retry(attempts):
            run.state, run.error = "lost", "the runner of its submission has ended"

    def cancel(self, submission: Submission, runs: Sequence[str]) -> None:
        names = cancelled(submission.folder) | set(runs)
        write_atomic(submission.folder / "cancelled", "\n".join(sorted(names)) + "\n")

    def log_file(self, submission: Submission, index: int) -> Path:
        return submission.folder / "logs" / f"{submission.runs[index]}.log"

    def start(self, settings: Mapping[str, Any], arguments: Sequence[str]) -> subprocess.Popen | Forked:
        if settings["ranks"] == 1:
            return Forked("opd.train", arguments)
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={settings['ranks']}"]
        command = [sys.executable, "-P", "-m", *torchrun, "-m", "opd.train", *arguments]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def runner_alive(submission: Submission) -> bool:
    """Whether the runner of a submission is alive or about to start."""
    try:
        with FileLock(submission.folder / "runner.lock", timeout=0):
            pass
    except Timeout:
        return True
    except OSError:
        return False
    if submission.pid is None or submission.host != os.uname().nodename:
        return False
    try:
        return submission.id.encode() in Path(f"/proc/{submission.pid}/cmdline").read_bytes()
    except OSError:
        return False


def run(folder: Path) -> None:
    """Run a submission's runs, `max_parallel` at once; one that fails does not hold up the rest.

    On SIGTERM the runs end, each with a checkpoint. Runs named in the file `cancelled` end or are not started.
    """
    from sweeps import task

    ledger = Ledger(folder.parent.parent.parent)
    with ledger.lock():
        submission = ledger.submission(folder.name)
        if submission is None or submission.abandoned:
            return  # the command that started us died, and a later one has abandoned this submission
        lock = FileLock(folder / "runner.lock", timeout=5)  # `runner_alive` holds it for a moment
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"{folder}: has a runner already") from None
    runs, settings = read_submission(folder)
    limit, processes = settings["max_parallel"], multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(PRELOAD) if settings["ranks"] == 1 else [])
    waiting, running, signalled, signals = list(range(len(runs))), {}, set(), []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    while waiting or running:
        unwanted = cancelled(folder)
        if signals:
            waiting.clear()
        while waiting and len(running) < limit:
            index = waiting.pop(0)
            if runs[index] not in unwanted:
                log = folder / "logs" / f"{runs[index]}.log"
                running[index] = processes.Process(target=task.logged, args=(log, str(folder), str(index)))
                running[index].start()
        for index, process in list(running.items()):
            if process.exitcode is not None:
                del running[index]
            elif (signals or runs[index] in unwanted) and index not in signalled:
                signalled.add(index)
                process.terminate()
        time.sleep(POLL)


def cancelled(folder: Path) -> set[str]:
    """The cancelled runs of a submission."""
    file = folder / "cancelled"
    return set(file.read_text().split()) if file.exists() else set()


if __name__ == "__main__":
    from sweeps import cli

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cli.run(lambda arguments: run(Path(arguments[0])))
