"""A search's axes, from Hydra's syntax to Optuna's distributions, and the scores of its runs."""

import math
import re
from pathlib import Path

import pytest

from hydra_plugins.opd_search import score
from opd.errors import UserError
from tests.unit.sweeps.conftest import write_status

optuna = pytest.importorskip("optuna", reason="Optuna is not installed; make setup EXTRAS=optuna")


def test_axes_on_the_command_line_are_optunas_distributions():
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from hydra_plugins.opd_search import _axes

    given = ["optim.lr=tag(log, interval(1e-6, 1e-3))", "gamma=interval(0, 0.9)", "epochs=int(interval(1, 4))"]
    listed = ["whitening=none,batch", "divergence.alpha=range(0, 1, 0.5)", "num_steps=4", "+experiment=mis"]
    fixed, axes = _axes([*given, *listed])
    assert fixed == ["num_steps=4", "+experiment=mis"]
    assert axes == {
        "optim.lr": FloatDistribution(1e-6, 1e-3, log=True),
        "gamma": FloatDistribution(0.0, 0.9),
        "epochs": IntDistribution(1, 4),
        "whitening": CategoricalDistribution(["none", "batch"]),
        "divergence.alpha": CategoricalDistribution(["0.0", "0.5"]),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gamma=0.5"], "hydra/sweeper=optuna: there is no axis; give one, as"),
        (["gamma=0,1", "seed=0,1"], "seed=0,1: axes clash: the seeds of a trial are hydra.sweeper.seeds=[…]"),
        (["gamma=0,1", "+sweep=gamma"], "+sweep=gamma: is a grid, which a search cannot use; leave out it"),
        (["optim.lr=tag(log, interval(0, 1))"], "optim.lr=tag(log, interval(0, 1)): is not a valid interval"),
        (["gamma=interval(0,"], "gamma=interval(0,: cannot be read"),
    ],
)
def test_wrong_axes_are_refused_in_one_sentence(arguments: list[str], said: str):
    from hydra_plugins.opd_search import _axes

    with pytest.raises(UserError, match=re.escape(said)) as refused:
        _axes(arguments)
    assert "\n" not in str(refused.value)


def test_a_score_is_the_largest_or_last_evaluation(tmp_path: Path):
    run = write_status(tmp_path / "run", "running", 40, 40)
    for step, value in {0: None, 10: 0.3, 20: 0.9, 30: 0.4}.items():
        run.append_metrics({"step": step} if value is None else {"step": step, "evaluate/mean@8": value})
    assert [score(run.path, metric) for metric in ("mean@8 last", "mean@8 max")] == [0.4, 0.9]
    assert math.isnan(score(run.path, "best@8 max"))
