"""The instrument's calibration, on pools whose truth is known."""

import numpy as np
import pytest
import scipy.stats

from analysis import calibration
from analysis.calibration import Blocks, draw, narrowest, smallest
from analysis.contrasts import Bootstrap
from analysis.results import Results, analyse
from tests.unit.analysis.test_contrasts import records

SPREAD = 0.03  # between seeds


def pool(*, seeds: int = 60, control: float = 0.1) -> Results:
    rng = np.random.default_rng(0)
    hard = rng.uniform(-0.2, 0.2, 50)
    arms = {"default": (seeds, 0.5), "control": (20, 0.5 - control)}
    made = {
        (name, seed, 1, "x"): level + hard + rng.normal(0, SPREAD) + rng.normal(0, 0.02, 50)
        for name, (number, level) in arms.items()
        for seed in range(number)
    }
    return analyse(records(made), baseline="default", bootstrap=Bootstrap(count=100, seed=0))


def drawn(results: Results, name: str, size: int, *, paired: bool, pairs: int = 400) -> Blocks:
    arms = {arm.label: arm.used for arm in results.arms}
    rng = np.random.default_rng(1)
    return draw(results, arms[name], arms["default"], size, paired, margin=0.05, pairs=pairs, rng=rng)


@pytest.mark.parametrize("paired", [True, False])
def test_blocks_of_one_pool_are_seldom_called_different(paired: bool):
    blocks = drawn(pool(), "default", 5, paired=paired)
    assert (blocks.p[:, 0] <= 0.05).mean() < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    np.testing.assert_array_equal(blocks.decisions["direction"] != "not settled", blocks.p[:, 0] <= 0.05)
    assert blocks.differences[:, 0].std() == pytest.approx(SPREAD * (2 / 5) ** 0.5, rel=0.25)


def test_a_control_is_found_and_equal_blocks_are_called_equivalent_within_the_margin():
    results = pool()
    found = drawn(results, "control", 5, paired=False)
    assert (found.p[:, 0] <= 0.05).mean() > 0.9 and found.differences[:, 0].mean() == pytest.approx(-0.1, abs=0.02)
    assert (found.decisions["equivalence"] == "contradicted").mean() > 0.2
    same = drawn(results, "default", 20, paired=False)
    assert (same.decisions["equivalence"] == "reproduced").mean() > 0.9


def test_blocks_are_disjoint_and_of_the_size_asked_for():
    runs = tuple(f"r{number}" for number in range(9))
    for left, right in calibration._blocks(runs, runs, 4, 50, np.random.default_rng(0)):
        assert len(set(left) | set(right)) == 8 and len(left) == len(right) == 4


@pytest.mark.parametrize("size", [3, 5, 20])
@pytest.mark.parametrize("sides", [1, 2])
def test_the_smallest_difference_is_found_in_four_of_five_studies(size: int, sides: int):
    effect = smallest(0.05, size, sides=sides)
    rng = np.random.default_rng(size)
    ours = effect + rng.normal(0, 0.05, (20_000, size))
    if sides == 1:
        p = scipy.stats.ttest_1samp(ours, 0, axis=1).pvalue
    else:
        p = scipy.stats.ttest_ind(ours, rng.normal(0, 0.05, (20_000, size)), axis=1).pvalue
    assert (p <= 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert smallest(0.05, size, sides=sides, alpha=0.005) > effect


@pytest.mark.parametrize("size", [3, 5, 20])
def test_equal_arms_are_called_equal_within_the_narrowest_margin_in_four_of_five_studies(size: int):
    margin = narrowest(0.05, size)
    ours, theirs = np.random.default_rng(size).normal(0, 0.05, (2, 20_000, size))
    above = scipy.stats.ttest_ind(ours + margin, theirs, axis=1, alternative="greater").pvalue
    below = scipy.stats.ttest_ind(ours - margin, theirs, axis=1, alternative="less").pvalue
    assert (np.maximum(above, below) <= 0.025).mean() == pytest.approx(0.8, abs=0.01)
    assert narrowest(0.05, size, alpha=0.005) > margin > smallest(0.05, size, sides=2)


def test_the_page_has_every_table(tmp_path, monkeypatch):
    results = pool()
    monkeypatch.setattr(calibration, "read_records", lambda folder: results.records)
    text = calibration.calibrate(calibration.Arguments(runs=tmp_path, pairs=100))
    assert "60 runs of default; 100 pairs" in text and "| control | " in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## A/A: called different, of 100 pairs that are not",
        "## Controls: called different, of 100 pairs",
        "## Smallest difference found in four of five studies, points",
        "## Narrowest margin of equivalence, points",
        "## Where the spread between seeds comes from",
    ]
    spread = next(line for line in text.splitlines() if "standard deviation over seeds" in line)
    assert float(spread.split("|")[2]) == pytest.approx(100 * SPREAD, rel=0.3)


def test_a_pool_that_is_too_small_is_refused(tmp_path, monkeypatch):
    results = pool(seeds=5)
    monkeypatch.setattr(calibration, "read_records", lambda folder: results.records)
    with pytest.raises(calibration.UserError, match="baseline=default: fewer than 6 runs of it are finished"):
        calibration.calibrate(calibration.Arguments(runs=tmp_path))
