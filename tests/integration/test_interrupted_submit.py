"""A submission to this machine that is interrupted or killed at each of its steps: nothing lost, nothing orphaned."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sweeps import cli, compose, local, state, submit
from sweeps.ledger import Ledger
from sweeps.run_state import RunState
from sweeps.submission import recover

SWEEP = ["+sweep=gamma", "sweep.seeds=[0]", "sweep.grid=[{name:[poisoned],student.model:[/nowhere]}]"]


def submitted(outputs: Path, *, kill_at: int | None = None, number: int = signal.SIGINT) -> tuple[list[str], int]:
    """Submits in a process of its own, which is sent a signal as it comes to its nth step; its steps, its wait status.

    A step is a file or folder of the submission that is made, opened or renamed, or a process that is started.
    """
    steps = outputs.parent / f"{outputs.name}.steps"
    steps.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us in the background
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        log, seen = os.open(steps, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 0

        def step(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event not in ("open", "os.mkdir", "os.rename", "os.remove", "subprocess.Popen"):
                return
            place = str(arguments[-1] if event == "os.rename" else arguments[0])
            if event == "subprocess.Popen":
                place = " ".join(map(str, arguments[1]))
                if "sweeps.local" not in place:
                    return
            elif "/.sweep" not in place or "part/" in place:  # of the copies of many files the folder stands for all
                return
            os.write(log, f"{event} {place}\n".encode())
            if seen == kill_at:
                os.kill(os.getpid(), number)
            seen += 1

        sys.addaudithook(step)
        sys.argv = ["submit", *SWEEP, f"paths.outputs={outputs}"]
        try:
            cli.run(submit.main)
            os._exit(0)
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return steps.read_text().splitlines(), status


def runners(outputs: Path) -> list[tuple[int, str]]:
    """Process and submission of each runner of a study that lives."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "sweeps.local" in words and str(outputs) in words[-2]:
            found.append((int(folder.name), Path(words[-2]).name))
    return found


def settled(outputs: Path) -> RunState:
    limit = time.monotonic() + 240
    while (seen := state.read(Ledger(outputs / "main")).runs[0]).live:
        assert time.monotonic() < limit, seen
        time.sleep(0.2)
    return seen


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The steps of a submission that is left alone."""
    with compose.composer() as composer:
        composer.config([])  # imports here, once, what every submission would import
    outputs = tmp_path_factory.mktemp("whole")
    found, status = submitted(outputs)
    assert status == 0 and settled(outputs).state == "refused"
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_wherever_a_submission_ends_the_next_command_knows_what_became_of_it(
    steps: list[str], number: int, tmp_path: Path
):
    handing_over = next(place for place, step in enumerate(steps) if step.startswith("subprocess.Popen"))
    assert handing_over > 8 and any("tasks.json" in step for step in steps[:handing_over])
    for place in range(0, handing_over, 2 if number == signal.SIGKILL else 3):
        outputs = tmp_path / str(place)
        outputs.mkdir()
        _, status = submitted(outputs, kill_at=place, number=number)
        assert status == (130 if number == signal.SIGINT else -number), (place, steps[place])
        assert runners(outputs) == []
        book = Ledger(outputs / "main")
        with book.lock():
            recover(book)
        assert all(one.abandoned for one in book.submissions())
        known = {one.id for one in book.submissions()}
        assert {folder.name for folder in (book.folder / "submissions").glob("*")} <= known
        assert state.read(book, ["poisoned-01234567-s0"]).runs[0].state == "pending"


@pytest.mark.parametrize(
    ("number", "late"), [(signal.SIGKILL, 0), pytest.param(signal.SIGINT, 1, marks=pytest.mark.apart)]
)
def test_a_runner_that_was_started_unsaid_is_found_or_leaves(steps: list[str], number: int, late: int, tmp_path: Path):
    handing_over = next(place for place, step in enumerate(steps) if step.startswith("subprocess.Popen"))
    _, status = submitted(tmp_path, kill_at=handing_over + late, number=number)
    assert status == (130 if number == signal.SIGINT else -number)
    assert submitted(tmp_path)[1] == 0
    book = Ledger(tmp_path / "main")
    held = [one.id for one in book.submissions() if one.abandoned is None]
    assert len(held) == 1, "its run is held twice"
    seen = settled(tmp_path)
    assert seen.state == "refused" and seen.attempts == 1
    limit = time.monotonic() + 30
    while runners(tmp_path) and time.monotonic() < limit:
        time.sleep(0.1)
    assert runners(tmp_path) == [] and not local.runner_alive(book.submissions()[-1])
