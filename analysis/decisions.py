"""What each kind of claim states of the scores, and what the scores say to that."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from analysis.published import Claim, Settings
from analysis.stats.intervals import Estimate

REPORT_ONLY, NOT_RUN, IDENTITY = "report only", "not run", "identity"


@dataclass(frozen=True)
class Statement:
    """arm - factor · baseline, a difference of scores in [0, 1], lies between `low` and `high`."""

    arm: str
    baseline: str
    low: float
    high: float
    factor: float = 1.0


@dataclass(frozen=True)
class Found:
    """A statement and what the runs say of its difference, one number each in the estimate.

    Attributes:
        seeds: of the side that has fewest.
        sides: 1 where the seeds of both are paired, 2 where not.
        problems: how many both were asked.
    """

    statement: Statement
    estimate: Estimate
    seeds: int
    sides: int
    problems: int


@dataclass(frozen=True)
class Decision:
    """What the statements of one claim come to.

    Attributes:
        holds: the chance of such scores if the claim were false.
        fails: the chance of such scores if the claim were true.
        deciding: the statement that is least sure if the claim seems to hold, the one most surely false if it does not.
    """

    holds: float
    fails: float
    deciding: Found

    @property
    def p(self) -> float:
        """Two-sided: the chance of a wrong verdict, whichever it would be. NaN where nothing varies."""
        return float(np.minimum(1, 2 * np.minimum(self.holds, self.fails)))


def decide(found: Sequence[Found]) -> Decision:
    """A claim holds where all of its statements do, and fails where one of them does.

    That all hold is as sure as the one that is least so, without a correction (the intersection-union test: Berger,
    1982). That one fails is the smallest of their chances times how many there are (Bonferroni). A statement holds if
    the difference is above `low` and below `high`, each tested one-sided, and fails if it is below `low` or above
    `high`: for two finite ends the first is the test of equivalence by two one-sided tests (Schuirmann, 1987).
    """
    holds, fails = [_holds(one) for one in found], [_fails(one) for one in found]
    all_hold, one_fails = max(holds), min(1.0, len(found) * min(fails))
    # NaN, of a difference without an error, is in both lists at the same place and settles nothing.
    if np.isnan(holds).any():
        return Decision(math.nan, math.nan, found[int(np.isnan(holds).argmax())])
    return Decision(all_hold, one_fails, found[int(np.argmax(holds) if all_hold <= one_fails else np.argmin(fails))])


def _holds(one: Found) -> float:
    low, high = one.statement.low, one.statement.high
    above = one.estimate.p_above(low)[0] if math.isfinite(low) else 0.0
    below = one.estimate.p_below(high)[0] if math.isfinite(high) else 0.0
    return math.nan if one.estimate.error[0] == 0 else float(max(above, below))


def _fails(one: Found) -> float:
    low, high = one.statement.low, one.statement.high
    below = one.estimate.p_below(low)[0] if math.isfinite(low) else 1.0
    above = one.estimate.p_above(high)[0] if math.isfinite(high) else 1.0
    return math.nan if one.estimate.error[0] == 0 else float(min(below, above))


# ---- what each kind states


def _direction(claim: Claim, settings: Settings) -> list[Statement]:
    """Every arm is above, or below, every baseline."""
    return _each(claim, *_side(claim.expected == "above"))


def _effect(claim: Claim, settings: Settings) -> list[Statement]:
    """The arm differs from the baseline in the published direction. The published size, measured once and elsewhere, is
    not tested.
    """
    return _each(claim, *_side((claim.effect or 0) > 0))


def _monotone(claim: Claim, settings: Settings) -> list[Statement]:
    """Every arm is above the one before it."""
    return [Statement(later, earlier, *_side(True)) for earlier, later in pairwise(claim.arms)]


def _argmax(claim: Claim, settings: Settings) -> list[Statement]:
    """The arm is above every other."""
    return _each(claim, *_side(True))


def _equivalence(claim: Claim, settings: Settings) -> list[Statement]:
    """Every arm is within the margin of the baseline."""
    return _each(claim, -settings.margin / 100, settings.margin / 100)


def _no_worse(claim: Claim, settings: Settings) -> list[Statement]:
    """Every arm is at most the margin below the baseline."""
    return _each(claim, -settings.margin / 100, math.inf)


def _ranking(claim: Claim, settings: Settings) -> list[Statement]:
    """No later arm is more than the margin above the first."""
    first, *later = claim.arms
    return [Statement(arm, first, -math.inf, settings.margin / 100) for arm in later]


def _stability(claim: Claim, settings: Settings) -> list[Statement]:
    """Every arm has less than `kept` of the baseline's score."""
    return _each(claim, -math.inf, 0.0, factor=settings.kept)


def _nothing(claim: Claim, settings: Settings) -> list[Statement]:
    """Nothing that could be false: the differences are shown."""
    return _each(claim, -math.inf, math.inf)


KINDS: dict[str, Callable[[Claim, Settings], list[Statement]]] = {
    "direction": _direction,
    "effect": _effect,
    "monotone": _monotone,
    "argmax": _argmax,
    "ranking": _ranking,
    "flat": _equivalence,
    "equivalence": _equivalence,
    "no worse": _no_worse,
    "stability": _stability,
    REPORT_ONLY: _nothing,
    NOT_RUN: _nothing,
    IDENTITY: _nothing,
}


def _side(above: bool) -> tuple[float, float]:
    return (0.0, math.inf) if above else (-math.inf, 0.0)


def _each(claim: Claim, low: float, high: float, *, factor: float = 1.0) -> list[Statement]:
    return [Statement(arm, baseline, low, high, factor) for arm in claim.arms for baseline in claim.baseline]
