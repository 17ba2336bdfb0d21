"""The order of the arms, and how steadily each run trained."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.contrasts import Bootstrap
from analysis.outcomes import by_step, steadiness
from analysis.results import analyse
from tests.unit.analysis.test_contrasts import records


def test_ranks_are_of_settled_students_that_were_asked_the_same():
    rng = np.random.default_rng(0)
    hard = rng.random(40) * 0.2
    means = {(name, 0, 1, "x"): level + hard for name, level in (("default", 0.5), ("a", 0.7), ("b", 0.6))}
    read = records(means | {("teacher", 0, 1, "x"): hard + 0.8, ("other", 0, 1, "y"): hard + 0.8})
    found = analyse(read, baseline="default", bootstrap=Bootstrap(count=200, seed=0)).ranking
    last = found[found["which"] == "last"]
    assert list(last["arm"]) == ["a-hash", "b-hash", "default-hash"]
    assert list(last["rank"]) == [1, 2, 3] == list(last["low"]) == list(last["high"])
    assert list(last["best"]) == [1, 0, 0]


def test_steadiness_of_a_run_by_hand():
    read = records({("a", 0, step, "x"): [level] for step, level in enumerate((0.9, 0.2, 0.6, 0.1))})
    training = pd.DataFrame({"run": "a/0", "step": range(1, 31)})
    training["grad_norm"] = [1.0] * 29 + [9.0]
    training["divergence/reverse_kl"] = [0.5] * 27 + [0.2] * 3
    row = steadiness(replace(read, training=training), by_step(read)).iloc[0]
    assert (row["run"], bool(row["collapsed"]), row["spikes"]) == ("a/0", True, 1)
    assert row["fall"] == pytest.approx(0.5) and row["kl_drift"] == pytest.approx(-0.3)
