"""A plan: every run composed as by `opd.train`, checked, and there once."""

import re

import pytest

from opd.check import config as check
from opd.config import identity
from opd.errors import UserError
from sweeps import grid
from sweeps.compose import Composer, composer
from sweeps.plan import plan
from tests.integration.conftest import composed_by_hydra


@pytest.fixture(scope="module")
def compose():
    with composer() as found:
        yield found


@pytest.mark.parametrize(
    "overrides",
    [
        ["+experiment=tsallis", "gamma=0.0", "divergence.alpha=1.5"],
        ["scale=qwen3_4b", "+experiment=kl_0_30", "optim.betas=[0.8,0.9]", "filter.p_max=40"],
        ["max_response_length=50", "batch_size=8", "+experiment=half_length", "evaluate.benchmarks=[]"],
        ["+recipes.more=${recipes.small}", "num_steps=3", "clip={low:null,high:null}"],
    ],
)
def test_a_config_is_what_hydra_composes(overrides: list[str], compose: Composer):
    ours = check.as_dict(compose.config(overrides))
    # Composed again by a separate Hydra, so that nothing is shared.
    from hydra.core.global_hydra import GlobalHydra

    held = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    assert ours == check.as_dict(composed_by_hydra(overrides))
    GlobalHydra.instance().initialize(held)


def test_an_outer_hydra_is_restored_afterwards(compose: Composer):
    from hydra.core.global_hydra import GlobalHydra

    held = GlobalHydra.instance().hydra
    with composer() as another:
        assert GlobalHydra.instance().hydra is not held and another.config([]).gamma == 0
    assert GlobalHydra.instance().hydra is held and held is not None


def test_runs_that_two_sweeps_share_are_one_run(compose: Composer):
    plans = [plan(compose, [f"+sweep={name}"], ranks=1) for name in ("stability", "gamma")]
    ids = [{run.id for run in found.runs} for found in plans]
    assert {run.rsplit("-", 2)[0] for run in ids[0] & ids[1]} == {"mis"} and len(ids[0] & ids[1]) == 3
    assert all(found.study == plans[0].study for found in plans)


@pytest.mark.apart
def test_everything_has_the_runs_of_other_sweeps(compose: Composer):
    plans = [plan(compose, [f"+sweep={name}"], ranks=1) for name in ("stability", "gamma", "everything")]
    *some, everything = [{run.id for run in found.runs} for found in plans]
    assert set.union(*some) <= everything and all(found.study == plans[0].study for found in plans)


def test_each_arm_has_every_seed_and_its_own_identity(compose: Composer):
    found = plan(compose, ["+sweep=gamma", "sweep.seeds=[3,5]"], ranks=1)
    assert [(run.config["name"], run.config["seed"]) for run in found.runs] == [
        (name, seed) for name in ("mis", "gamma_0_1", "gamma_0_5") for seed in (3, 5)
    ]
    assert all(run.id == identity.run_id(run.config) for run in found.runs)


def test_all_bad_arms_are_listed(compose: Composer):
    found = plan(compose, ["+sweep=gamma", "shaping.anchor=x"], ranks=1)
    assert len(found.bad) == 3 and all("shaping.anchor" in reason for _, reason in found.bad)


def test_arms_that_differ_only_in_their_name_are_listed(compose: Composer):
    found = plan(compose, ["+sweep=epochs", "epochs=3", "sweep.seeds=[0,1]"], ranks=1)
    assert found.alike == [("+experiment=mis", "+experiment=two_epochs")] and found.twins == []
    assert "+experiment=mis and +experiment=two_epochs differ only in their name" in found.notes[0]
    assert len(found.runs) == 4
    assert plan(compose, ["+sweep=epochs"], ranks=1).notes == []


def test_an_arm_written_in_two_ways_is_one_run(compose: Composer):
    found = plan(compose, ["+sweep=gamma", "sweep.grid=[{gamma:[0,0.0]}]", "sweep.seeds=[0]"], ranks=1)
    assert found.num_arms == 2 and len(found.runs) == 1 and found.twins == [("gamma=0", "gamma=0.0")]
    assert found.notes == ["gamma=0.0 is the same run as gamma=0, and is not run again"] and found.alike == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.apart] if name == "everything" else []) for name in grid.names()]
)
def test_no_two_arms_of_a_published_sweep_are_one_run(name: str, compose: Composer):
    found = plan(compose, [f"+sweep={name}", "sweep.seeds=[0]"], ranks=1)
    assert found.bad == [] and found.twins == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "sweep: none is chosen; choose one with +sweep=NAME: calibration, "),
        (["+sweep=nonsense"], "sweep=nonsense: there is no such choice"),
        (["+sweep=gamma", "sweep.nonsense=1"], "sweep.nonsense: there is no such key"),
        (["+sweep=gamma", "seed=1"], "seed=1: axes clash: the seeds of a sweep are sweep.seeds=[…]"),
        (["+sweep=gamma", "+experiment=mis"], "+experiment=mis: axes clash: experiment is an axis"),
        (["+sweep=gamma", "epochs=1,2"], "epochs=1,2: gives several values; write the axis into sweep.grid"),
        (["+sweep=gamma", "hydra/launcher=basic"], "hydra/launcher=basic: belongs to python -m opd.train -m"),
        (["+sweep=gamma", "epochs"], "epochs: cannot be read; give KEY=VALUE"),
        (["+sweep=gamma", "sweep.grid=[{study:[a,b]}]"], "study: cannot be an axis"),
        (["+sweep=gamma", "scale=nonsense"], "scale=nonsense: there is no such choice"),
        (["+sweep=gamma", "nonsense=1"], "nonsense: there is no such key"),
        (["+sweep=gamma", "+sweep=epochs"], "+sweep=gamma,epochs: is more than one sweep; submit them one by one"),
        (["+sweep=gamma,epochs"], "+sweep=gamma,epochs: is more than one sweep"),
        (["+sweep=gamma", "sweep.seeds=0,1"], "sweep.seeds=0,1: gives several values; write a list in brackets"),
        (["+sweep=gamma", "~sweep"], "sweep: none is chosen"),
        (["+sweep=gamma", "~sweep.grid"], "sweep.grid: is missing; give it a value"),
        (["+sweep=gamma", "sweep.grid=[]"], "sweep.grid: sweep=gamma has no arms"),
        (["+sweep=gamma", "sweep.grid=[gamma]"], "sweep.grid.0='gamma': should be an object"),
        (
            ["+sweep=gamma", 'sweep.grid=[{gamma:["${nowhere}"]}]'],
            "sweep.grid[0].gamma[0]: Interpolation key 'nowhere'",
        ),
        (["+sweep=gamma", "sweep.grid=[{+experiment:[nonsense]}]"], "experiment=nonsense: there is no such choice"),
        (["+sweep=gamma", "sweep.grid=[{nonsense:[a]}]"], "nonsense: there is no such key"),
        (["+sweep=gamma", "epochs=[1,2"], "epochs=[1,2: cannot be read; give KEY=VALUE"),
        (["+sweep=gamma", "=1"], "=1: cannot be read; give KEY=VALUE"),
        (["+sweep=gamma", "study=a/b"], "study='a/b': string should match pattern"),
        (["+sweep=gamma", "paths.outputs="], "paths.outputs='': string should have at least 1 character"),
        (["+sweep=gamma", "gamma=2"], "gamma=2: should be less than or equal to 1"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_sentence(overrides: list[str], said: str, compose: Composer):
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        found = plan(compose, overrides, ranks=1)
        raise UserError(found.bad[0][1])
    assert "\n" not in str(refused.value)


def test_each_run_is_pushed_to_a_repository_of_its_own(compose: Composer):
    with pytest.raises(UserError, match=r"^hub\.push=me/one: \S+-s0 and \S+-s1 would both be pushed there; give each"):
        plan(compose, ["+sweep=gamma", "sweep.seeds=[0,1]", "hub.push=me/one"], ranks=1)
    own = plan(compose, ["+sweep=gamma", "sweep.seeds=[0,1]", "hub.push=me/${name}-s${seed}"], ranks=1)
    assert len({run.config["hub"]["push"] for run in own.runs}) == len(own.runs)


def test_a_batch_that_the_ranks_cannot_share_is_refused_before_it_is_queued(compose: Composer):
    (bad, *_) = plan(compose, ["+sweep=epochs", "batch_size=5"], ranks=2).bad
    assert "mini_batch_size=5: must be a multiple of the 2 ranks" in bad[1]
