"""Sweep files: their arms, and what the published ones cover."""

import re
from pathlib import Path

import pytest
import yaml

from opd.config.schema import CONF
from opd.errors import UserError
from sweeps import grid
from sweeps.compose import composer
from sweeps.grid import Sweep

CLAIMS_FILE = Path(__file__).parents[3].parent / "shared" / "reference" / "claims.yaml"
# Not a config of `opd.train`: a reward alone, supervised distillation, a second round of fine-tuning.
NO_ARM = {
    "gsm8k-opd-beats-rl",
    "gsm8k-starting-points",
    "aime24-opd",
    "aime24-off-policy",
    "continual-learning-recovers",
}
# Known differences, by which the instrument is measured; nothing published.
CONTROLS = {"half_lr", "double_lr", "half_data"}
EXPERIMENTS = {file.stem for file in (CONF / "experiment").glob("*.yaml")}


def sweep(*blocks, **changes) -> Sweep:
    plain = {"name": "s", "baseline": "mis", "claims": [], "metric": "mean@8 max", "seeds": [0], "include": []}
    plain["exports"] = []
    return grid.read(plain | {"grid": list(blocks)} | changes)


@pytest.fixture(scope="module")
def published() -> dict[str, Sweep]:
    with composer() as compose:
        from omegaconf import OmegaConf

        nodes = {name: compose.composed([f"+sweep={name}"]).sweep for name in grid.names()}
        return {name: grid.read(OmegaConf.to_container(node)) for name, node in nodes.items()}


def test_a_block_is_the_product_of_its_axes():
    found = grid.arms(sweep({"gamma": [0, 0.5], "whitening": ["none", "batch"]}))
    assert found == [
        ("gamma=0", "whitening=none"),
        ("gamma=0", "whitening=batch"),
        ("gamma=0.5", "whitening=none"),
        ("gamma=0.5", "whitening=batch"),
    ]


def test_axes_in_one_key_change_together():
    assert grid.arms(sweep({"name, optim.lr": [["low", 1e-6], ["high", 1e-4]]})) == [
        ("name=low", "optim.lr=1e-06"),
        ("name=high", "optim.lr=0.0001"),
    ]


def test_blocks_are_joined_and_a_shared_arm_is_there_once():
    assert grid.arms(sweep({"gamma": [0, 1]}, {"gamma": [1, 2]})) == [("gamma=0",), ("gamma=1",), ("gamma=2",)]


def test_a_string_is_an_axis_in_hydras_syntax():
    assert grid.arms(sweep({"gamma": "range(0, 1, 0.5)"})) == [("gamma=0.0",), ("gamma=0.5",)]
    assert grid.arms(sweep({"seed_": "choice(a, b)"})) == [("seed_=a",), ("seed_=b",)]


def test_another_sweep_may_be_included():
    found = grid.arms(sweep({"gamma": [0.3]}, include=["gamma"]))
    assert found == [("gamma=0.3",), ("+experiment=mis",), ("+experiment=gamma_0_1",), ("+experiment=gamma_0_5",)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ([1, "a b"], "[1,'a b']"),
        ({"low": 1}, "{low:1}"),
        ("${scale.lr}", "${scale.lr}"),
    ],
)
def test_a_value_is_written_as_hydra_reads_it(value, text: str):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (arm,) = grid.arms(sweep({"key": [value]}))
    assert arm == (f"key={text}",)
    assert OverridesParser.create().parse_override(arm[0]).value() == value


@pytest.mark.parametrize("value", ["12", "1e-3", "true", "it's", "a,b", "", "\\", "null"])
def test_a_string_stays_a_string(value: str):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (arm,) = grid.arms(sweep({"key": [value]}))
    assert OverridesParser.create().parse_override(arm[0]).value() == value


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"grid": [{"gamma": []}]}, "sweep.grid[0]: axis gamma has no values"),
        ({"grid": [{"gamma": "0.5"}]}, "sweep.grid[0]: gamma=0.5 is a single value; an axis is a list"),
        ({"grid": [{"gamma": "range(0,"}]}, "sweep.grid[0]: gamma=range(0, is not an axis"),
        ({"grid": [{"gamma": [0], "gamma, epochs": [[1, 2]]}]}, "sweep.grid[0]: axes clash: gamma is given twice"),
        ({"grid": [{"gamma, epochs": [[1]]}]}, "gamma, epochs is 2 axes, but [1] does not give each a value"),
        ({"grid": [{"gamma, epochs": "1,2"}]}, "axes that change together (gamma, epochs) need a list of lists"),
        ({"grid": [{"seed": [1, 2]}]}, "sweep.grid[0]: seed cannot be an axis; the seeds of all arms are sweep.seeds"),
        ({"grid": []}, "sweep.grid: sweep=s has no arms"),
        ({"include": ["nonsense"]}, "sweep.include: there is no sweep 'nonsense'; there are calibration, controls"),
        ({"seeds": []}, "sweep.seeds=[]: list should have at least 1 item"),
        ({"seeds": [1, 1]}, "sweep.seeds=[1, 1]: contains a seed twice"),
        ({"seeds": [-1]}, "sweep.seeds.0=-1: should be greater than or equal to 0"),
        ({"metric": "accuracy"}, "sweep.metric='accuracy': string should match pattern"),
        ({"arms": []}, "sweep.arms: a sweep has no such key"),
        ({"baseline": "../x"}, "sweep.baseline='../x': string should match pattern"),
    ],
)
def test_a_wrong_sweep_is_refused_in_one_sentence(node: dict, said: str):
    with pytest.raises(UserError, match=re.escape(said)):
        grid.arms(sweep(**({"grid": [{"gamma": [0, 1]}]} | node)))


@pytest.mark.parametrize("name", [*grid.names()])
def test_a_published_sweep_names_itself_its_command_and_its_source(name: str, published):
    first, second, third, *_ = (CONF / "sweep" / f"{name}.yaml").read_text().splitlines()
    assert (first, second) == ("# @package _global_", f"# python -m sweeps.submit +sweep={name}")
    assert third.startswith("# ") and published[name].name == name


@pytest.mark.parametrize("name", [*grid.names()])
def test_the_arms_of_a_published_sweep_are_experiments_and_its_baseline_is_among_them(name: str, published):
    arms = {arm[0].removeprefix("+experiment=") for arm in grid.arms(published[name])}
    assert arms <= EXPERIMENTS and published[name].baseline in arms


def test_everything_contains_every_experiment_but_the_controls(published):
    assert {arm[0].removeprefix("+experiment=") for arm in grid.arms(published["everything"])} == EXPERIMENTS - CONTROLS


def test_the_filter_sweep_is_three_criteria_by_three_ranges(published):
    arms = [arm[0].removeprefix("+experiment=") for arm in grid.arms(published["filter"])]
    ranges, criteria = ("0_30", "30_70", "70_100"), ("kl", "student_entropy", "teacher_entropy")
    assert sorted(arms) == sorted(["mis", *(f"{name}_{kept}" for name in criteria for kept in ranges)])


def test_the_sweeps_test_every_published_claim_that_has_an_arm(published):
    tested = [claim for sweep in published.values() for claim in sweep.claims]
    assert len(tested) == len(set(tested))
    if CLAIMS_FILE.exists():
        published_claims = {claim["id"] for claim in yaml.safe_load(CLAIMS_FILE.read_text())["claims"]}
        assert set(tested) == published_claims - NO_ARM


def test_no_value_depends_on_the_seed():
    """One composition serves all seeds of an arm."""
    assert not [file for file in CONF.rglob("*.yaml") if "${seed" in file.read_text()]
