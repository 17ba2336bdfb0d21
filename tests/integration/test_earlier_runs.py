"""Runs that an earlier version left, kept in `tests/runs`: this one has their ids, repeats their numbers, goes on from
their checkpoints and reports them.
"""

import shutil
from pathlib import Path

import pytest

from analysis.load import load
from analysis.report import Arguments, write_report
from opd.checkpoint.atomic import find_damage
from opd.config.identity import run_id
from opd.config.parsing import parse
from opd.config.recipe import model_path
from opd.records.run_dir import RunDir
from tests.forks import forked, run_ranks
from tests.integration import child
from tests.integration.test_ranks import free_port
from tests.runs import make

CLOCK = ("time", "throughput/", "memory/")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that has the models of the runs."""
    shutil.copytree(make.HERE / make.MODELS, tmp_path / make.MODELS)
    return tmp_path


def train(place: Path, name: str, *, ranks: int = 1) -> RunDir:
    """Repeats the run `name` in `place`; returns its directory."""
    arguments = [f"config={make.folder(name).config_file}"]
    if ranks == 1:
        alone = forked(child.command, arguments, place / "run")
        alone.join()
        assert alone.exitcode == 0, (place / "run.err").read_text()
    else:
        run_ranks(child.rank, (ranks, free_port(), arguments, place), ranks)
    return RunDir(place / make.OUTPUTS / make.STUDY / make.folder(name).path.name)


def same_numbers(found: RunDir, expected: RunDir, *, rel: float = 1e-4) -> None:
    """Holds that two runs computed the same, up to the rounding of another processor."""
    for ours, earlier in zip(found.metrics(), expected.metrics(), strict=True):
        earlier = {key: value for key, value in earlier.items() if not key.startswith(CLOCK)}
        if "entropy/teachers_mean" in ours:  # it had the name of the reference's own entropy
            ours = {"entropy/teacher": ours["entropy/teachers_mean"], **ours}
        assert {key: ours[key] for key in earlier} == pytest.approx(earlier, rel=rel, abs=1e-6)
    assert found.evaluations().keys() == expected.evaluations().keys()
    for step in expected.evaluations():
        assert found.samples(step) == expected.samples(step)


@pytest.mark.parametrize("name", make.RUNS)
def test_an_earlier_run_keeps_its_id(name: str):
    earlier = make.folder(name)
    assert run_id(earlier.config()) == earlier.path.name == earlier.manifest()["run_id"]


def test_the_model_of_an_earlier_recipe_is_found():
    (recipe,) = parse(make.folder("from_recipe").config()).recipes.values()
    assert model_path("student", recipe, make.HERE / make.MODELS).is_dir()


@pytest.mark.parametrize("name", make.RUNS)
def test_an_earlier_config_repeats_the_numbers(name: str, place: Path):
    earlier = make.folder(name)
    again = train(place, name, ranks=earlier.manifest()["world_size"])
    assert again.status().state == "finished"
    same_numbers(again, earlier)


@pytest.mark.parametrize("name", make.RUNS)
def test_an_earlier_run_goes_on_from_its_checkpoint(name: str, place: Path):
    earlier = make.folder(name)
    broken = RunDir(place / earlier.path.relative_to(make.HERE))
    shutil.copytree(earlier.path, broken.path)
    assert find_damage(broken.checkpoints / "step_000001") is None
    broken.rewind(1)
    broken.update_status(state="preempted", step=1)
    again = train(place, name)  # on one rank, whoever saved it
    assert again.path == broken.path and again.status().state == "finished" and again.status().attempts == 2
    same_numbers(again, earlier, rel=1e-4 if earlier.manifest()["world_size"] == 1 else 2e-3)
    assert again.metrics()[1] == earlier.metrics()[1]  # what was there is left as it was


def test_the_report_counts_earlier_runs(tmp_path: Path):
    runs = make.HERE / make.OUTPUTS
    counted = load(runs).runs
    assert counted["counted"].all()
    assert set(counted["run"]) == {f"{make.STUDY}/{make.folder(name).path.name}" for name in make.RUNS}
    write_report(Arguments(runs, tmp_path, strict=True, figures=False, cache=False))  # strict: nothing is left out
    page = (tmp_path / "report.md").read_text()
    assert all(name.replace("_", r"\_") in page for name in make.RUNS)
