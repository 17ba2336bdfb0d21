"""A sweep on this machine, from one command to finished runs: real runs, a runner of its own, a poisoned arm."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from opd.records.run_dir import RunDir
from sweeps.ledger import Ledger
from tests.forks import run_module
from tests.unit.sweeps.conftest import said

ROOT = Path(__file__).parents[2]


def command(module: str, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess:
    here = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = run_module(f"sweeps.{module}", *arguments, cwd=ROOT, env=here)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done


def status(outputs: Path, *filters: str) -> dict[str, dict]:
    lines = said("status", f"paths.outputs={outputs}", "--json", *filters).splitlines()
    return {run["name"]: run for run in map(json.loads, lines)}


def until(outputs: Path, holds: Callable[[dict[str, dict]], bool], seconds: float = 240) -> dict[str, dict]:
    limit = time.monotonic() + seconds
    while not holds(seen := status(outputs)):
        assert time.monotonic() < limit, seen
        time.sleep(0.2)
    return seen


@pytest.fixture(scope="module")
def swept(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A sweep of a good and a poisoned run that has ended; the command's arguments, and its outputs."""
    outputs = tmp_path_factory.mktemp("swept")
    given = [text for text in small_run if not text.startswith("student.model")]
    student = next(text for text in small_run if text.startswith("student.model")).partition("=")[2]
    arms = f"{{name:[good],student.model:[{student}]}},{{name:[poisoned],student.model:[/nowhere]}}"
    grid = f"sweep.grid=[{arms}]"
    arguments = ["+sweep=epochs", "sweep.seeds=[0]", grid, *given, f"paths.outputs={outputs}"]
    planned = said("submit", *arguments, "--dry-run")
    assert "2 arms × 1 seeds, 2 runs" in planned and not list(outputs.iterdir())
    first = subprocess.Popen(
        [sys.executable, "-m", "sweeps.submit", *arguments, "cluster.max_parallel=2"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    second = command("submit", *arguments, "cluster.max_parallel=2")
    printed, _ = first.communicate(timeout=300)
    # Two shells at once: one of them submitted, the other saw it.
    assert sorted("to do      2" in text for text in (printed, second.stdout)) == [False, True], (printed, second)
    until(outputs, lambda seen: len(seen) == 2 and {run["state"] for run in seen.values()} == {"finished", "refused"})
    return arguments, outputs


def test_a_poisoned_run_is_refused_with_its_reason_and_holds_up_nobody(swept):
    seen = status(swept[1])
    assert seen["good"]["state"] == "finished" and seen["good"]["step"] == 4
    assert seen["poisoned"]["state"] == "refused" and "/nowhere" in seen["poisoned"]["error"]
    assert seen["poisoned"]["attempts"] == 1
    table = command("status", f"paths.outputs={swept[1]}").stdout
    assert "2 runs: 1 finished, 1 refused" in table and seen["poisoned"]["error"] in table


def test_who_waits_is_told_by_the_exit_status_whether_all_finished(swept):
    waited = command("status", f"paths.outputs={swept[1]}", "--wait", ok=False)
    assert waited.returncode == 1 and "1 finished, 1 refused" in waited.stdout
    command("status", f"paths.outputs={swept[1]}", "--wait", "name=good")


def test_a_second_submission_has_nothing_to_do(swept):
    assert "to do      0" in said("submit", *swept[0])
    assert len(Ledger(swept[1] / "main").submissions()) == 1


def test_a_refused_run_is_not_tried_again_unasked(swept):
    assert "nothing to do" in said("resubmit", f"paths.outputs={swept[1]}")
    named = said("resubmit", f"paths.outputs={swept[1]}", "state=refused", "--dry-run")
    assert named.startswith("  poisoned-")


def test_the_log_of_a_run_is_found_by_the_start_of_its_id(swept):
    assert "step 4/4" in command("logs", "good", f"paths.outputs={swept[1]}").stdout
    assert "/nowhere" in command("logs", "poisoned", f"paths.outputs={swept[1]}").stdout


def test_only_finished_runs_lose_checkpoints_and_only_the_periodic(swept):
    folder = next(RunDir(path) for path in (swept[1] / "main").glob("good-*"))
    there = {path.name for path in folder.checkpoints.iterdir()}
    assert "would free" in said("prune", f"paths.outputs={swept[1]}", "--dry-run")
    assert {path.name for path in folder.checkpoints.iterdir()} == there
    command("prune", f"paths.outputs={swept[1]}")
    assert {path.name for path in folder.checkpoints.iterdir()} == {"final"} < there


def test_a_study_is_not_continued_from_a_checkout_of_other_code_unasked(swept, tmp_path: Path):
    for part in ("opd", "sweeps", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "opd" / "errors.py", "a") as file:
        file.write("# another checkout\n")
    before = Ledger(swept[1] / "main").file.read_bytes()
    arguments = [text for text in swept[0] if not text.startswith("sweep.grid")]
    refused = subprocess.run(
        [sys.executable, "-m", "sweeps.submit", *arguments, "sweep.grid=[{gamma:[0.25]}]"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert refused.returncode == 2 and "ran other code" in refused.stderr and refused.stderr.count("\n") == 1
    assert "--new-code to run the rest of this study with this code" in refused.stderr
    assert Ledger(swept[1] / "main").file.read_bytes() == before


def test_a_cancelled_run_saves_and_goes_on_when_it_is_submitted_again(small_run: list[str], tmp_path: Path):
    steps = [
        "num_steps=60",
        "prompts.source.num=512",
        "evaluate.every=0",
        "evaluate.at_start=false",
        f"paths.outputs={tmp_path}",
    ]
    arguments = [
        "+sweep=epochs",
        "sweep.seeds=[0]",
        "sweep.grid=[{name:[long]},{name:[never],gamma:[0.5]}]",
        *small_run,
        *steps,
    ]
    said("submit", *arguments)
    until(tmp_path, lambda seen: seen["long"]["step"] >= 2)
    assert "ended 2 runs" in said("cancel", "study=main", f"paths.outputs={tmp_path}")  # before it ends by itself
    seen = until(tmp_path, lambda seen: {run["state"] for run in seen.values()} == {"cancelled"})
    assert 2 <= seen["long"]["step"] < 60 and seen["never"]["attempts"] == 0
    (folder,) = (tmp_path / "main").glob("long-*")
    assert RunDir(folder).status().state == "preempted"
    said("submit", *arguments, "sweep.grid=[{name:[long]}]")
    until(tmp_path, lambda seen: seen["long"]["state"] == "finished")
    assert [line["step"] for line in RunDir(folder).metrics()] == list(range(1, 61))


def test_a_run_whose_runner_was_killed_is_lost_and_goes_on_when_it_is_resubmitted(small_run: list[str], tmp_path: Path):
    steps = [
        "num_steps=40",
        "prompts.source.num=512",
        "evaluate.every=0",
        "evaluate.at_start=false",
        f"paths.outputs={tmp_path}",
    ]
    said("submit", "+sweep=epochs", "sweep.seeds=[0]", "sweep.grid=[{name:[only]}]", *small_run, *steps)
    until(tmp_path, lambda seen: seen["only"]["step"] >= 1)
    (one,) = Ledger(tmp_path / "main").submissions()
    assert one.pid is not None
    for pid in [one.pid, *descendants(one.pid)]:
        os.kill(pid, 9)
    seen = until(tmp_path, lambda seen: seen["only"]["state"] != "running", 30)
    assert seen["only"]["state"] == "lost"
    (folder,) = (tmp_path / "main").glob("only-*")
    assert RunDir(folder).status().state == "failed"  # settled: its records no longer call it running
    command("resubmit", f"paths.outputs={tmp_path}")
    until(tmp_path, lambda seen: seen["only"]["state"] == "finished")
    assert [line["step"] for line in RunDir(folder).metrics()] == list(range(1, 41))


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in [child, *descendants(child)]]
