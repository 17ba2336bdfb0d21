"""What statements come to, by hand and by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis.decisions import KINDS, Decision, Finding, Statement, decide
from analysis.published import published
from analysis.stats.intervals import Estimate
from docs import coverage
from opd.config.places import ROOT
from tests.unit.analysis.test_claims import claim


def found(value: float, low: float, high: float, *, error: float = 1.0) -> Finding:
    """With so many degrees of freedom that t is normal: P(z > 1) = 0.1587, P(z > 2) = 0.0228, P(z > 3) = 0.0013."""
    numbers = (np.array([number]) for number in (value, error, 1e6, error**2, 0.0))
    return Finding(Statement("a", "b", low, high), Estimate(*numbers, problems=200), 3, 200)


def test_one_bound_by_hand():
    above = decide([found(2, 0, math.inf)])
    assert (above.holds, above.fails) == pytest.approx((0.0228, 0.9772), abs=1e-4)
    assert above.p == pytest.approx(0.0455, abs=1e-4)
    below = decide([found(2, -math.inf, 0)])
    assert (below.holds, below.fails) == pytest.approx((0.9772, 0.0228), abs=1e-4)


def test_equivalence_holds_as_surely_as_the_nearer_end_is_left():
    inside = decide([found(1, -3, 2)])
    assert inside.holds == pytest.approx(0.1587, abs=1e-4)
    outside = decide([found(5, -3, 2)])
    assert outside.fails == pytest.approx(0.0013, abs=1e-4) and outside.holds > 0.99


def test_a_claim_of_several_holds_with_the_least_sure_and_fails_with_any():
    sure, less, against = found(3, 0, math.inf), found(1, 0, math.inf), found(-3, 0, math.inf)
    holds = decide([sure, less])
    assert holds.holds == pytest.approx(0.1587, abs=1e-4) and holds.deciding is less
    fails = decide([sure, against])
    assert fails.fails == pytest.approx(2 * 0.0013, abs=2e-4) and fails.deciding is against


def test_what_does_not_vary_decides_nothing():
    decision = decide([found(0, -1, 1, error=0.0), found(3, 0, math.inf)])
    assert math.isnan(decision.p) and isinstance(decision, Decision)


def test_kinds_state_what_they_say():
    settings = replace(published().settings, margin=1.0, kept=0.5)
    three = claim("monotone", arms=("x", "y", "z"))
    assert KINDS["monotone"](three, settings) == [
        Statement("y", "x", 0, math.inf), Statement("z", "y", 0, math.inf),
    ]  # fmt: skip
    assert KINDS["ranking"](replace(three, kind="ranking"), settings) == [
        Statement("y", "x", -math.inf, 0.01), Statement("z", "x", -math.inf, 0.01),
    ]  # fmt: skip
    assert KINDS["stability"](claim("stability"), settings) == [Statement("a", "mis", -math.inf, 0, 0.5)]
    assert KINDS["equivalence"](claim("equivalence"), settings) == [Statement("a", "mis", -0.01, 0.01)]
    assert KINDS["no worse"](claim("no worse"), settings) == [Statement("a", "mis", -0.01, math.inf)]
    assert KINDS["effect"](claim("effect", effect=-0.5), settings) == [Statement("a", "mis", -math.inf, 0)]


@pytest.mark.parametrize(
    ("sweep", "seeds", "between", "theirs"),
    [("filter", 2, 0.03, None), ("filter", 2, 0.03, 60), ("divergence", 5, 0.03, None)],
)
def test_on_the_edge_hardly_any_sweep_has_a_wrong_verdict(sweep: str, seeds: int, between: float, theirs: int | None):
    """200 trials: 5 in 100, and three standard deviations."""
    assert coverage.decided(sweep, seeds, between, between, theirs=theirs, trials=200) <= 5 + 4.6


def test_every_sweep_that_decides_a_claim_is_in_the_simulation():
    rows = [line.split(" | ") for line in (ROOT / "docs" / "coverage.md").read_text().splitlines()]
    for sweep in coverage.sweeps():
        own = [row for row in rows if row[0] == f"| {sweep}"]
        assert [row[2] for row in own] == ["2", "3", "5"], f"python -m docs.coverage: {sweep} is not simulated"
        assert {row[1] for row in own} == {str(len(coverage.tested(sweep)))}
        assert all(float(wrong) <= 5 + 1.5 for row in own for wrong in row[3:7]), "5 in 100, and three deviations"
