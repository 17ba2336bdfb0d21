"""What each kind of claim states about scores, and how its statements are tested."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from analysis.published import Claim, Settings
from analysis.stats.intervals import Estimate

REPORT_ONLY, NOT_RUN, IDENTITY = "report only", "not run", "identity"
UNTESTED = (REPORT_ONLY, NOT_RUN, IDENTITY)  # kinds that no statistical test decides


@dataclass(frozen=True)
class Statement:
    """arm - factor · baseline, a difference of scores in [0, 1], lies between `low` and `high`."""

    arm: str
    baseline: str
    low: float
    high: float
    factor: float = 1.0


@dataclass(frozen=True)
class Finding:
    """A statement with the estimate of its difference, of one metric.

    Attributes:
        seeds: of the side with fewer.
        problems: number of problems that both answered.
    """

    statement: Statement
    estimate: Estimate
    seeds: int
    problems: int

    def p_holds(self) -> float:
        """p-value against the statement being false; NaN where nothing varies."""
        low, high = self.statement.low, self.statement.high
        above = self.estimate.p_above(low)[0] if math.isfinite(low) else 0.0
        below = self.estimate.p_below(high)[0] if math.isfinite(high) else 0.0
        return math.nan if self.estimate.error[0] == 0 else float(max(above, below))

    def p_fails(self) -> float:
        """p-value against the statement being true; NaN where nothing varies."""
        low, high = self.statement.low, self.statement.high
        below = self.estimate.p_below(low)[0] if math.isfinite(low) else 1.0
        above = self.estimate.p_above(high)[0] if math.isfinite(high) else 1.0
        return math.nan if self.estimate.error[0] == 0 else float(min(below, above))


@dataclass(frozen=True)
class Decision:
    """The tests of all statements of a claim, combined.

    Attributes:
        holds: p-value against the claim being false.
        fails: p-value against the claim being true.
        deciding: the least certain statement if the claim seems to hold, else the one that most certainly fails.
    """

    holds: float
    fails: float
    deciding: Finding

    @property
    def p(self) -> float:
        """Two-sided: the chance of a wrong verdict, whichever it would be. NaN where nothing varies."""
        return float(np.minimum(1, 2 * np.minimum(self.holds, self.fails)))

    def word(self, alpha: float) -> Literal["reproduced", "contradicted", "not settled"]:
        """What the tests come to at the two-sided level `alpha`."""
        if not self.p <= alpha:  # NaN too
            return "not settled"
        return "reproduced" if self.holds < self.fails else "contradicted"


def decide(findings: Sequence[Finding]) -> Decision:
    """Tests a claim, which holds where all of its statements do and fails where one of them does.

    That all hold is as certain as the least certain of them, without a correction (the intersection-union test: Berger,
    1982). That one fails is tested by the smallest p-value times their number (Bonferroni). A statement holds if the
    difference is above `low` and below `high`, each tested one-sided, and fails if it is below `low` or above `high`:
    with two finite ends the first is the test of equivalence by two one-sided tests (Schuirmann, 1987).
    """
    holds, fails = [one.p_holds() for one in findings], [one.p_fails() for one in findings]
    if np.isnan(holds).any():  # a difference without an error, NaN in both lists, settles nothing
        return Decision(math.nan, math.nan, findings[int(np.isnan(holds).argmax())])
    all_hold, one_fails = max(holds), min(1.0, len(findings) * min(fails))
    return Decision(all_hold, one_fails, findings[int(np.argmax(holds) if all_hold <= one_fails else np.argmin(fails))])


def _each(claim: Claim, low: float, high: float, *, factor: float = 1.0) -> list[Statement]:
    return [Statement(arm, baseline, low, high, factor) for arm in claim.arms for baseline in claim.baseline]


def _side(above: bool) -> tuple[float, float]:
    return (0.0, math.inf) if above else (-math.inf, 0.0)


def _equivalence(claim: Claim, settings: Settings) -> list[Statement]:
    return _each(claim, -settings.margin / 100, settings.margin / 100)


def _nothing(claim: Claim, settings: Settings) -> list[Statement]:
    return _each(claim, -math.inf, math.inf)


# Kind → the statements that a claim of this kind makes.
KINDS: dict[str, Callable[[Claim, Settings], list[Statement]]] = {
    # Every arm is above, or below, every baseline.
    "direction": lambda claim, settings: _each(claim, *_side(claim.expected == "above")),
    # The arm differs from the baseline in the published direction. The published size, measured once and elsewhere, is
    # not tested.
    "effect": lambda claim, settings: _each(claim, *_side((claim.effect or 0) > 0)),
    # Every arm is above the one before it.
    "monotone": lambda claim, settings: [Statement(b, a, *_side(True)) for a, b in pairwise(claim.arms)],
    # The arm is above every other.
    "argmax": lambda claim, settings: _each(claim, *_side(True)),
    # No later arm is more than the margin above the first.
    "ranking": lambda claim, settings: [
        Statement(arm, claim.arms[0], -math.inf, settings.margin / 100) for arm in claim.arms[1:]
    ],
    # Every arm is within the margin of the baseline.
    "flat": _equivalence,
    "equivalence": _equivalence,
    # Every arm is at most the margin below the baseline.
    "no worse": lambda claim, settings: _each(claim, -settings.margin / 100, math.inf),
    # Every arm has less than `kept` of the baseline's score.
    "stability": lambda claim, settings: _each(claim, -math.inf, 0.0, factor=settings.kept),
    # No statement that could be false: the differences are shown.
    REPORT_ONLY: _nothing,
    NOT_RUN: _nothing,
    IDENTITY: _nothing,
}
