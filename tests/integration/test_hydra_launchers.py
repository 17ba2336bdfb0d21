"""`python -m opd.train -m +sweep=NAME` through Hydra's launchers: the runs of `sweeps.submit`, in the same places."""

import os
import subprocess
from pathlib import Path

import pytest

from opd.records.run_dir import RunDir
from sweeps import state
from sweeps.compose import composer
from sweeps.ledger import Ledger
from sweeps.plan import plan
from tests.forks import run_module

ROOT = Path(__file__).parents[2]


def multirun(*arguments: str) -> subprocess.CompletedProcess:
    here = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return run_module("opd.train", "-m", *arguments, cwd=ROOT, env=here)


def numbers(folder: RunDir) -> list[dict]:
    clock = ("time", "throughput/", "memory/")
    return [{key: value for key, value in line.items() if not key.startswith(clock)} for line in folder.metrics()]


@pytest.fixture(scope="module")
def arguments(small_run: list[str]) -> list[str]:
    # Two arms, one of them written twice.
    return ["+sweep=epochs", "sweep.seeds=[0]", "sweep.grid=[{gamma:[0,0.5,0.0]}]", *small_run]


@pytest.fixture(scope="module")
def basic(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("basic")
    done = multirun(*arguments, f"paths.outputs={outputs}", "hydra/launcher=basic")
    assert done.returncode == 0, done.stderr
    assert "opd: gamma=0.0 is the same run as gamma=0, and is not run again" in done.stdout
    return outputs / "main"


def test_its_runs_are_those_of_the_plan_with_the_same_records(basic: Path, arguments: list[str]):
    with composer() as compose:
        planned = plan(compose, [*arguments, f"paths.outputs={basic.parent}"], ranks=1)
    assert {folder.name for folder in basic.iterdir()} == {run.id for run in planned.runs}
    assert len(planned.runs) == 2
    for run in planned.runs:
        folder = RunDir(basic / run.id)
        assert folder.status().state == "finished" and folder.metrics()[-1]["step"] == 4
    assert {one.state for one in state.read(Ledger(basic)).runs} == {"finished"}


@pytest.mark.apart
def test_processes_of_submitit_make_the_same_runs(basic: Path, arguments: list[str], tmp_path: Path):
    done = multirun(*arguments, f"paths.outputs={tmp_path}", "hydra/launcher=submitit_local")
    assert done.returncode == 0, done.stderr
    assert {folder.name for folder in (tmp_path / "main").iterdir()} == {folder.name for folder in basic.iterdir()}
    for folder in basic.iterdir():
        assert numbers(RunDir(tmp_path / "main" / folder.name)) == numbers(RunDir(folder))


def test_a_run_that_is_refused_leaves_no_records_and_holds_up_no_other(small_run: list[str], tmp_path: Path):
    student = next(text for text in small_run if text.startswith("student.model")).partition("=")[2]
    rest = [text for text in small_run if not text.startswith("student.model")]
    arms = f"{{name:[poisoned],student.model:[/nowhere]}},{{name:[good],student.model:[{student}]}}"
    done = multirun("+sweep=epochs", "sweep.seeds=[0]", f"sweep.grid=[{arms}]", *rest, f"paths.outputs={tmp_path}")
    assert done.returncode != 0 and "/nowhere" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert {one.name: one.state for one in state.read(Ledger(tmp_path / "main")).runs} == {"good": "finished"}


def test_nothing_is_launched_where_an_arm_may_not_start(small_run: list[str], tmp_path: Path):
    done = multirun("+sweep=epochs", "sweep.grid=[{gamma:[0.5,2]}]", *small_run, f"paths.outputs={tmp_path}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "1 of 2 arms may not start, so nothing is submitted: gamma=2: gamma=2: should be" in done.stderr
    assert not (tmp_path / "main").exists()
