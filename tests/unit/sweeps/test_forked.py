"""A module in a forked process: exit status, process group, signals, exit handlers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import atexit, os, signal, sys
from sweeps.forked import Forked

atexit.register(lambda: print("the first at its exit", flush=True))

heard = []
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda number, _: heard.append(number))
child = Forked("commanded", sys.argv[1:])
print(child.pid, flush=True)
print(child.wait(), heard)
"""
COMMANDED = """
import atexit, os, signal, sys, time
if __name__ == "__main__":
    assert os.getpgrp() == os.getpid()
    if sys.argv[1] == "sleep":
        open(sys.argv[2], "w").close()
        time.sleep(60)
    if sys.argv[1] == "exit":
        atexit.register(lambda: print("the copy at its exit", file=sys.stderr))
        sys.exit(3)
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(None if sys.argv[1] == "none" else int(sys.argv[1]) if sys.argv[1].isdigit() else sys.argv[1])
"""


@pytest.fixture
def start(tmp_path: Path):
    (tmp_path / "commanded.py").write_text(COMMANDED)
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[3]}:{tmp_path}"}

    def started(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    return started


@pytest.mark.parametrize(
    ("how", "status"), [("none", 0), ("0", 0), ("2", 2), ("75", 75), ("a sentence", 1), ("kill", -9)]
)
def test_the_exit_status_is_that_of_the_module(start, how: str, status: int):
    said, errors = start(how).communicate(timeout=60)
    assert said.splitlines()[1:] == [f"{status} []", "the first at its exit"]
    assert errors.strip() == ("a sentence" if how == "a sentence" else "")


def test_each_process_runs_only_its_own_exit_handlers(start):
    said, errors = start("exit").communicate(timeout=60)
    assert said.splitlines()[1:] == ["3 []", "the first at its exit"]
    assert errors == "the copy at its exit\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_its_group_ends_the_fork_and_not_its_parent(start, number: int, tmp_path: Path):
    parent = start("sleep", str(tmp_path / "begun"))
    child = int(parent.stdout.readline())
    limit = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.killpg(child, number)
    assert parent.communicate(timeout=60)[0].splitlines()[0] == f"{-number} []"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_before_the_module_runs_ends_the_fork(start, number: int, tmp_path: Path):
    parent = start("sleep", str(tmp_path / "begun"))
    os.killpg(int(parent.stdout.readline()), number)  # its process group exists from the start
    assert parent.communicate(timeout=60)[0].splitlines()[0] == f"{-number} []"
