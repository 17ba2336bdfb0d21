"""A sweep of two-rank runs on a real SLURM, left alone and disturbed: the same metrics, and a status that is true."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opd.records.run_dir import RunDir
from tests.slurm.conftest import CLUSTER, command
from tests.unit.sweeps.conftest import said

SWEEP = [
    "+sweep=epochs",
    "sweep.seeds=[0,1]",
    "num_steps=100",
    "prompts.source.num=512",
    "evaluate.every=50",
    "evaluate.at_start=false",
    "checkpoint.every=5",
]
PATIENCE = 600.0  # seconds for what should take one or two minutes on two free cores


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True, capture_output=True, text=True)


def status(outputs: Path) -> dict[str, dict]:
    lines = said("status", f"paths.outputs={outputs}", "--json").splitlines()
    return {run["run"]: run for run in map(json.loads, lines)}


def until(outputs: Path, holds: Callable[[dict[str, dict]], bool], what: str) -> dict[str, dict]:
    """Looks until it holds; every look must be true to what SLURM's queue and the records say at that moment."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        seen = status(outputs)
        assert not [
            run for run in seen.values() if run["state"] in ("failed", "refused", "lost", "timeout", "cancelled")
        ], seen
        if holds(seen):
            return seen
        time.sleep(0.5)
    raise AssertionError(f"not within {PATIENCE:.0f} s: {what}; {status(outputs)}")


def metrics(outputs: Path) -> dict[str, list[dict]]:
    clock = ("time", "throughput/", "memory/")
    return {
        folder.name: [{k: v for k, v in line.items() if not k.startswith(clock)} for line in RunDir(folder).metrics()]
        for folder in (outputs / "main").iterdir()
        if not folder.name.startswith(".")
    }


def minutes_so_far(job: str) -> int:
    """Whole minutes that a job has run, rounded up; a limit one above them is less than two minutes away."""
    asked = subprocess.run(["squeue", "-h", "-r", "-j", job, "-o", "%M"], check=True, capture_output=True, text=True)
    days, _, clock = asked.stdout.strip().rpartition("-")
    *hours, minutes, _ = [0, *map(int, clock.split(":"))]
    return int(days or 0) * 1440 + hours[-1] * 60 + minutes + 1


def ranks_of(run: str) -> dict[int, int]:
    """Rank → process id of a run's processes on this host."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = dict(
                line.split(b"=", 1) for line in (folder / "environ").read_bytes().split(b"\0") if b"=" in line
            )
        except OSError:
            continue
        if b"opd.train" in words and not words[0].endswith(b"srun") and f"{run}.yaml".encode() in b"".join(words):
            found[int(environment[b"SLURM_PROCID"])] = int(folder.name)
    return found


@pytest.fixture(scope="module")
def undisturbed(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    outputs = tmp_path_factory.mktemp("undisturbed")
    command("submit", *small_run, *SWEEP, f"paths.outputs={outputs}", *CLUSTER)
    seen = until(outputs, lambda seen: {run["state"] for run in seen.values()} == {"finished"}, "all finished")
    assert len(seen) == 4 and {run["attempts"] for run in seen.values()} == {1}
    return metrics(outputs)


@pytest.fixture
def drained() -> Iterator[Callable[[str], None]]:
    nodes = []

    def drain(node: str) -> None:
        nodes.append(node)
        scontrol("update", f"nodename={node}", "state=drain", "reason=test")

    yield drain
    for node in nodes:
        scontrol("update", f"nodename={node}", "state=resume")


def test_a_disturbed_sweep_ends_with_the_metrics_of_an_undisturbed_one(
    small_run: list[str], undisturbed: dict[str, list[dict]], drained, tmp_path: Path
):
    command("submit", *small_run, *SWEEP, f"paths.outputs={tmp_path}", *CLUSTER)

    def at_work(seen: dict[str, dict]) -> list[dict]:
        return [run for run in seen.values() if run["state"] == "running" and 2 <= run["step"] < 70]

    def one_at_work(but: set[str]) -> dict:
        found = until(tmp_path, lambda seen: any(run["run"] not in but for run in at_work(seen)), "a run at work")
        return next(run for run in at_work(found) if run["run"] not in but)

    killed = one_at_work(set())
    os.kill(ranks_of(killed["run"])[1], signal.SIGKILL)

    requeued = one_at_work({killed["run"]})
    scontrol("requeue", requeued["job"])

    late = one_at_work({killed["run"], requeued["run"]})
    scontrol("update", f"jobid={late['job']}", f"timelimit={minutes_so_far(late['job']) + 1}")
    drained(late["node"])
    left = until(tmp_path, lambda seen: seen[late["run"]]["state"] != "running", "the late run has left")
    in_time = left[late["run"]]["state"] == "finished"  # on a fast host, before its limit
    scontrol("update", f"jobid={late['job']}", "timelimit=30")
    assert "to do      0" in said("submit", *small_run, *SWEEP, f"paths.outputs={tmp_path}", *CLUSTER)

    seen = until(tmp_path, lambda seen: {run["state"] for run in seen.values()} == {"finished"}, "all finished")
    assert metrics(tmp_path) == undisturbed
    for run in (killed, requeued, *([] if in_time else [late])):
        assert seen[run["run"]]["attempts"] >= 2, run
    assert command("submit", *small_run, *SWEEP, f"paths.outputs={tmp_path}", *CLUSTER).stdout.count("finished   4")
