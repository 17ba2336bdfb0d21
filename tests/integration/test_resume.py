"""A killed run, given the same command again, ends with the records and weights of an unbroken one, bit for bit."""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from opd.checkpoint.atomic import find_damage
from opd.records.run_dir import RunDir
from tests.forks import FORK, forked
from tests.integration.child import run
from tests.integration.conftest import composed

APART = pytest.mark.apart


def spawn(overrides: list[str], kill_at: int | None = None, *, timeout: float | None = None, writes=None) -> int | None:
    """Runs in a child; returns its exit code, negative for the signal that ended it."""
    child = forked(run, composed(overrides), kill_at, writes)
    child.join(timeout)
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    return child.exitcode


def content(folder: RunDir) -> dict[str, object]:
    """All that a run computed: metrics without the clock, evaluations, texts and weights, byte for byte."""
    clock = ("time", "time/", "throughput/", "memory/")
    metrics = [{key: value for key, value in line.items() if not key.startswith(clock)} for line in folder.metrics()]
    assert folder.evaluations().keys() == folder.texts().keys()
    evaluations = [*folder.evaluations().values(), *folder.texts().values()]
    files = [*evaluations, *sorted(folder.checkpoints.rglob("*.safetensors"))]
    return {"metrics": metrics, **{str(file.relative_to(folder.path)): file.read_bytes() for file in files}}


def only_run(outputs: Path) -> RunDir:
    (path,) = (outputs / "main").iterdir()
    return RunDir(path)


@pytest.fixture(scope="module")
def whole(small_run, tmp_path_factory) -> tuple[Path, int]:
    """The outputs of an unbroken run, to read only, and how many flushes and renames it makes."""
    outputs, count = tmp_path_factory.mktemp("unbroken"), FORK.Value("i", 0)
    assert spawn([*small_run, f"paths.outputs={outputs}"], writes=count) == 0
    return outputs, count.value


@pytest.fixture(scope="module")
def unbroken(whole) -> tuple[dict[str, object], int]:
    """What it leaves, and that number."""
    return content(only_run(whole[0])), whole[1]


@pytest.mark.parametrize("moment", [0, pytest.param(1, marks=APART), 2, 3, pytest.param(4, marks=APART), 5])
def test_a_run_killed_at_a_write_resumes_exactly(moment: int, unbroken, small_run, tmp_path: Path):
    """One of each sixth of the run's writes."""
    expected, writes = unbroken
    overrides = [*small_run, f"paths.outputs={tmp_path}"]
    kill_at = random.Random(moment).randint(1 + moment * writes // 6, (moment + 1) * writes // 6)
    assert spawn(overrides, kill_at) == -signal.SIGKILL
    assert spawn(overrides) == 0
    folder = only_run(tmp_path)
    assert content(folder) == expected
    assert folder.status().state == "finished" and folder.status().attempts >= 1


def test_a_run_killed_again_and_again_by_the_clock_resumes_exactly(unbroken, small_run, tmp_path: Path):
    overrides = [*small_run, f"paths.outputs={tmp_path}"]
    draw, kills = random.Random(0), 0
    # On a busy machine four seconds may be too few to get anywhere.
    while spawn(overrides, timeout=draw.uniform(0.2, 4) * 1.1**kills) != 0:
        kills += 1
    assert content(only_run(tmp_path)) == unbroken[0]


@pytest.mark.parametrize("moment", [pytest.param(0, marks=APART), 1])
def test_a_run_that_waits_for_its_checkpoints_resumes_exactly_too(moment: int, unbroken, small_run, tmp_path: Path):
    overrides = [*small_run, f"paths.outputs={tmp_path}", "checkpoint.asynchronous=false"]
    assert spawn(overrides, random.Random(moment).randint(1, unbroken[1])) == -signal.SIGKILL
    assert spawn(overrides) == 0
    assert content(only_run(tmp_path)) == unbroken[0]


@pytest.fixture(scope="module")
def adapted(small_run) -> list[str]:
    return [*small_run, "lora=all_linear", "student.lora.rank=4", "optim.lr=0.01"]


@pytest.fixture(scope="module")
def unbroken_adapted(adapted, tmp_path_factory) -> tuple[RunDir, int]:
    outputs, count = tmp_path_factory.mktemp("adapted"), FORK.Value("i", 0)
    assert spawn([*adapted, f"paths.outputs={outputs}"], writes=count) == 0
    return only_run(outputs), count.value


@pytest.mark.parametrize("moment", [pytest.param(0, marks=APART), 1])
def test_a_killed_run_of_adapters_resumes_exactly(moment: int, unbroken_adapted, adapted, tmp_path: Path):
    overrides = [*adapted, f"paths.outputs={tmp_path}"]
    kill_at = random.Random(moment).randint(unbroken_adapted[1] // 2, unbroken_adapted[1])
    assert spawn(overrides, kill_at) == -signal.SIGKILL
    assert spawn(overrides) == 0
    assert content(only_run(tmp_path)) == content(unbroken_adapted[0])


def test_checkpoints_of_adapters_leave_the_model_out(unbroken_adapted):
    checkpoints = unbroken_adapted[0].checkpoints
    assert [file.name for file in sorted((checkpoints / "step_000004").glob("*.safetensors"))] == [
        "adapter_model.safetensors",
        "optimizer.safetensors",
    ]
    assert (checkpoints / "final" / "model.safetensors").exists()
    assert (checkpoints / "final" / "adapter" / "adapter_config.json").exists()


def damaged(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def test_from_a_damaged_checkpoint_the_run_goes_back_one_and_ends_the_same(whole, unbroken, small_run, tmp_path: Path):
    overrides = [*small_run, f"paths.outputs={tmp_path}"]
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    folder = only_run(tmp_path)
    shutil.rmtree(folder.checkpoints / "final")
    folder.update_status(state="preempted")
    damaged(folder.checkpoints / "step_000004")
    assert content(folder) != unbroken[0]
    assert spawn(overrides) == 0
    assert content(folder) == unbroken[0] and find_damage(folder.checkpoints / "step_000004") is None


def test_a_torn_last_metrics_line_is_forgotten(unbroken, small_run, tmp_path: Path):
    overrides = [*small_run, f"paths.outputs={tmp_path}"]
    spawn(overrides, unbroken[1] // 2)
    with open(only_run(tmp_path).metrics_file, "a") as file:
        file.write('{"step": 99, "loss"')
    assert spawn(overrides) == 0
    assert content(only_run(tmp_path)) == unbroken[0]


def test_a_finished_run_is_left_alone(whole, small_run, tmp_path: Path):
    overrides = [*small_run, f"paths.outputs={tmp_path}"]
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    before = {file: file.stat().st_mtime_ns for file in only_run(tmp_path).path.rglob("*") if file.name != ".lock"}
    assert spawn(overrides) == 0
    assert before == {
        file: file.stat().st_mtime_ns for file in only_run(tmp_path).path.rglob("*") if file.name != ".lock"
    }


def test_metrics_are_one_json_object_a_step(whole):
    lines = only_run(whole[0]).metrics_file.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3, 4]
