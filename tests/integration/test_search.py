"""Searches on real runs: Optuna's trials are scored by the records."""

import re
import statistics
import sys
from pathlib import Path

import pytest

from hydra_plugins.opd_search import score
from opd import cli, train
from opd.records import config_argument
from opd.records.run_dir import RunDir
from tests.integration.test_hydra_launchers import multirun

pytest.importorskip("optuna", reason="Optuna is not installed; make setup EXTRAS=optuna")
SEARCH = ["hydra/sweeper=optuna", "gamma=interval(0.0, 0.9)", "whitening=none,batch", "hydra.sweeper.seeds=[0,1]",
          "hydra.sweeper.metric=mean@2 last", "hydra.sweeper.startup_trials=2"]  # fmt: skip


@pytest.fixture(scope="module")
def searched(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, str]:
    outputs = tmp_path_factory.mktemp("searched")
    arguments = [*SEARCH, *small_run, "num_steps=2", f"paths.outputs={outputs}"]
    done = multirun(*arguments, "hydra.sweeper.trials=3")
    assert done.returncode == 0, done.stderr
    return arguments, outputs, done.stdout


def trials(said: str) -> list[tuple[float, str, float]]:
    found = re.findall(r"^trial \d+/\d+: gamma=(\S+) whitening=(\w+): (\S+)$", said, re.M)
    return [(float(gamma), whitening, float(value)) for gamma, whitening, value in found]


def test_a_trial_is_worth_the_mean_over_seeds_of_its_records(searched):
    _, outputs, said = searched
    asked = trials(said)
    assert len(asked) == 3 and all(0 <= gamma <= 0.9 and how in ("none", "batch") for gamma, how, _ in asked)
    of: dict[tuple[float, str], list[Path]] = {}
    for folder in (outputs / "main").iterdir():
        config = RunDir(folder).config()
        of.setdefault((config["gamma"], config["whitening"]), []).append(folder)
    for gamma, how, value in asked:
        runs = of[gamma, how]
        assert {RunDir(run).config()["seed"] for run in runs} == {0, 1}
        assert value == pytest.approx(statistics.fmean(score(run, "mean@2 last") for run in runs), abs=1e-4)
    assert f"mean@2 last {max(value for *_, value in asked):.4f}, seeds [0, 1]" in said.splitlines()[-1]


def test_a_search_goes_on_with_what_it_has_found(searched):
    arguments, outputs, said = searched
    before = {folder.name: RunDir(folder).status().updated for folder in (outputs / "main").iterdir()}
    again = multirun(*arguments, "hydra.sweeper.trials=4")
    assert again.returncode == 0, again.stderr
    assert trials(again.stdout)[:3] == trials(said) and len(trials(again.stdout)) == 4
    after = {folder.name: RunDir(folder).status().updated for folder in (outputs / "main").iterdir()}
    assert len(after) == 8 and {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["whitening=none"], "hydra/sweeper=optuna: there is no axis; give one, as"),
        (["gamma=0,1", "seed=0,1"], "seed=0,1: axes clash: the seeds of a trial are hydra.sweeper.seeds=[…]"),
        (["gamma=0,1", "hydra.sweeper.trials=0"], "hydra.sweeper.trials=0: should be a whole number, 1 or more"),
        (["gamma=0,1", "hydra.sweeper.metric=loss"], "metric=loss: is not a metric; give mean@K"),
        (["gamma=2,3"], "should be less than or equal to 1"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_in_one_sentence(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """The command in this process, which need not import it anew."""
    monkeypatch.setattr(sys, "argv", ["opd.train", "-m", "hydra/sweeper=optuna", *given, f"paths.outputs={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        cli.main(train._main, config_argument.expand)
    sentence = capfd.readouterr().err
    assert ended.value.code == 2 and said in sentence, sentence
    assert sentence.count("\n") == 1 and "Traceback" not in sentence
