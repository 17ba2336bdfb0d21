"""Runs of a submission on this machine: `python -m sweeps.local SUBMISSION` outlives the terminal that started it.

A server of processes imports once what runs of one rank import, most of the time that a short run would take to start.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from opd.errors import UserError
from sweeps.ledger import Ledger, read_submission

POLL = 0.2  # seconds between looks at the processes
IMPORTED = ("opd.step.assemble", "opd.step.loop", "opd.records.card", "opd.train", "opd.step.watching")


def start(submission: Path, environment: dict[str, str]) -> int:
    """Starts the runner of a submission, detached; returns its process id."""
    with open(submission / "logs" / "runner.log", "ab") as log:
        runner = subprocess.Popen(
            [sys.executable, "-P", "-m", "sweeps.local", str(submission)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
        )
    return runner.pid


def alive(submission: Path, pid: int | None, host: str | None) -> bool:
    """Whether the runner of a submission runs, or is about to."""
    try:
        with FileLock(submission / "runner.lock", timeout=0):
            pass
    except Timeout:
        return True
    except OSError:
        return False
    if pid is None or host != os.uname().nodename:
        return False
    try:
        return submission.name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def began(submission: Path) -> bool:
    """Whether a submission of which nothing was said has, or had, a runner: one that has ended has left attempts."""
    return alive(submission, None, None) or any((submission / "attempts").glob("*"))


def run(submission: Path) -> None:
    """Runs what is to run, `max_parallel` at once; one that fails does not hold up the rest.

    SIGTERM ends the runs, each with a checkpoint; a `cancelled` file names runs that are not to run any more.
    """
    from sweeps import task

    ledger = Ledger(submission.parent.parent.parent)
    with ledger.lock():
        mine = {found.id: found for found in ledger.submissions()}.get(submission.name)
        if mine is None or mine.abandoned:
            return  # the command that started us died, and another has settled what it left
        lock = FileLock(submission / "runner.lock", timeout=5)  # a look at it holds it for a moment
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"{submission}: has a runner already") from None
    runs, settings = read_submission(submission)
    limit, processes = settings["max_parallel"], multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(IMPORTED) if settings["ranks"] == 1 else [])
    waiting, running, told, leaving = list(range(len(runs))), {}, set(), []
    signal.signal(signal.SIGTERM, lambda number, _: leaving.append(number))
    while waiting or running:
        unwanted = cancelled(submission)
        if leaving:
            waiting.clear()
        while waiting and len(running) < limit:
            place = waiting.pop(0)
            if runs[place] not in unwanted:
                log = submission / "logs" / f"{runs[place]}.log"
                running[place] = processes.Process(target=task.logged, args=(log, str(submission), str(place)))
                running[place].start()
        for place, process in list(running.items()):
            if process.exitcode is not None:
                del running[place]
            elif (leaving or runs[place] in unwanted) and place not in told:
                told.add(place)
                process.terminate()
        time.sleep(POLL)


def cancelled(submission: Path) -> set[str]:
    """The runs of a submission that are not to run any more."""
    file = submission / "cancelled"
    return set(file.read_text().split()) if file.exists() else set()


if __name__ == "__main__":
    from sweeps import cli

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cli.run(lambda arguments: run(Path(arguments[0])))
