"""A rank that is killed, hangs or fails ends the others with one sentence and a record, and its command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from opd.config.schema import RunConfig
from opd.records.run_dir import RunDir
from tests.forks import forked
from tests.integration.conftest import composed
from tests.integration.test_ranks import free_port


def work(rank: int, size: int, port: int, config: RunConfig, said: Path, fails: bool) -> None:
    """One rank, as the command runs it; `fails`: it raises after some steps."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 2)
    import torch

    from opd import cli, train
    from opd.step import loop

    torch.set_num_threads(1)
    if fails:
        step, detectors = loop.step, []

        def failing(*args):
            detectors.append(None)
            if len(detectors) == 3:
                raise ValueError("no such luck")
            return step(*args)

        loop.step = failing
    cli.main(lambda: train.train(config))


@dataclass
class World:
    """Ranks of one run, each with a file of what it says."""

    outputs: Path
    overrides: list[str]
    size: int = 2
    fails: int | None = None
    processes: list = field(default_factory=list)

    def __enter__(self) -> "World":
        config, port = composed(self.overrides), free_port()
        for rank in range(self.size):
            self.processes.append(forked(work, rank, self.size, port, config, self.file(rank), rank == self.fails))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()

    def file(self, rank: int) -> Path:
        return self.outputs / f"rank_{rank}.txt"

    @property
    def folder(self) -> RunDir:
        return RunDir(next((self.outputs / "main").iterdir()))

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            files = list(self.outputs.glob("main/*/status.json"))
            if files and RunDir(files[0].parent).status().step >= step:
                return
            assert all(process.is_alive() for process in self.processes), self.file(0).read_text()
            time.sleep(0.05)
        raise AssertionError("no step was made")

    def end_of(self, rank: int, within: float) -> str:
        """What the rank said; it must have ended, refused, by then."""
        self.processes[rank].join(within)
        assert self.processes[rank].exitcode == 2
        return self.file(rank).read_text()


def unending(small_run: list[str], outputs: Path) -> list[str]:
    """A run that is not over before something happens to it."""
    return [*small_run, "num_steps=400", "epochs=80", "evaluate.every=0", f"paths.outputs={outputs}"]


@pytest.fixture
def endless(small_run: list[str], tmp_path: Path) -> list[str]:
    return unending(small_run, tmp_path)


@pytest.fixture(scope="module", autouse=True)
def hung(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[World]]:
    """Two runs whose rank 0, or 1, has stopped; the other waits for it during the first tests of this file."""
    with ExitStack() as both:
        worlds = []
        for outputs in (tmp_path_factory.mktemp("hung") for _ in range(2)):
            given = [*unending(small_run, outputs), "compute.rank_timeout=15.0"]
            worlds.append(both.enter_context(World(outputs, given)))
        for stopped, world in enumerate(worlds):
            world.wait_for_step(2)
            os.kill(world.processes[stopped].pid, signal.SIGSTOP)
        yield worlds


def sentence(said: str) -> str:
    """The one line of ours, where nothing is a traceback."""
    assert "Traceback" not in said
    (ours,) = [line for line in said.splitlines() if line.startswith("opd: ")]
    return ours


@pytest.mark.parametrize("killed", [0, 1])
def test_killed_rank_is_named_by_all_others(killed: int, endless: list[str], tmp_path: Path):
    with World(tmp_path, [*endless, "batch_size=6"], size=3) as world:
        world.wait_for_step(2)
        os.kill(world.processes[killed].pid, signal.SIGKILL)
        for rank in {0, 1, 2} - {killed}:
            said = sentence(world.end_of(rank, within=120))
            assert f"opd: rank {killed} of 3 left: its process ended or is unreachable; " in said
            assert "the same command resumes from step " in said
        status = world.folder.status()
        assert status.state == "failed" and f"rank {killed} of 3 left" in str(status.error)
    with World(tmp_path, [*endless, "batch_size=6"], size=3) as world:
        world.wait_for_step(status.step + 1)


def test_last_rank_learns_who_is_lost(monkeypatch: pytest.MonkeyPatch):
    import torch.distributed as dist

    from opd.ranks import failure_detection

    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    store = dist.TCPStore("127.0.0.1", port, is_master=True)
    detectors = {}
    for rank in (0, 2):
        monkeypatch.setattr(failure_detection, "SESSIONS", iter([0]))
        detectors[rank] = failure_detection.FailureDetector(rank, 3)
    assert detectors[0].lost_ranks() == {1: None}
    del store  # its host, rank 0, is gone
    assert detectors[2].lost_ranks() == {1: None}


def test_failed_rank_reports_its_reason(endless: list[str], tmp_path: Path):
    with World(tmp_path, endless, fails=1) as world:
        said = sentence(world.end_of(0, within=120))
        assert "opd: rank 1 of 2 left: no such luck; the same command resumes from step 2" in said
        world.processes[1].join(120)
        assert "ValueError: no such luck" in world.file(1).read_text()


def test_hung_rank_is_named_after_timeout(hung: list[World]):
    for stopped, world in enumerate(hung):
        said = sentence(world.end_of(1 - stopped, within=120))
        assert f"opd: rank {stopped} of 2 left: no answer within compute.rank_timeout=15.0; " in said
        status = world.folder.status()
        assert status.state == "failed" and f"rank {stopped} of 2 left" in str(status.error)


@pytest.mark.apart
def test_torchrun_leaves_no_run_that_says_it_is_running(endless: list[str], tmp_path: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "opd.train"]
    run = subprocess.Popen(
        [*command, *endless], stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    world = World(tmp_path, endless, processes=[])
    try:
        world.wait_for_step(2)
        children = subprocess.run(
            ["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        ranks = {read_rank(int(child)): int(child) for child in children}
        os.kill(ranks[1], signal.SIGKILL)
        _, said = run.communicate(timeout=240)
    finally:
        run.kill()
    assert "opd: rank 1 of 2 left: its process ended or is unreachable" in said
    assert world.folder.status().state == "failed"


def read_rank(pid: int) -> int:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return int(next(each for each in variables if each.startswith(b"RANK="))[5:])
