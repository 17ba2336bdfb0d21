"""What the runs say of a published claim's statements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.arms import Arm
from analysis.compared import Side, compare
from analysis.decisions import IDENTITY, KINDS, NOT_RUN, REPORT_ONLY, Found, Statement
from analysis.outcomes import MEASURES
from analysis.published import Claim, Published
from analysis.results import Results


@dataclass(frozen=True)
class Evidence:
    """A claim with what the runs say of its statements, or the reason why they say nothing."""

    claim: Claim
    arms: Mapping[str, Arm]
    found: Sequence[Found]
    missing: str

    @property
    def decidable(self) -> bool:
        """Whether it counts among the claims that are corrected for each other."""
        undecided = (REPORT_ONLY, NOT_RUN, IDENTITY)
        return not self.missing and self.claim.kind not in undecided and min(one.seeds for one in self.found) > 1

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs of all its arms."""
        return tuple(dict.fromkeys(run for arm in self.arms.values() for run in arm.used))


def gather(claim: Claim, results: Results, known: Published) -> Evidence:
    """The claim with what the runs say of its statements, or why they say nothing."""
    if claim.kind == NOT_RUN:
        return Evidence(claim, {}, (), claim.why)
    wanted = dict.fromkeys((*claim.arms, *claim.baseline))
    found = {name: _arms_of(name, results, known.same) for name in wanted}
    absent = [name for name, arms in found.items() if not arms]
    several = [name for name, arms in found.items() if len(arms) > 1]
    arms = {name: own[0] for name, own in found.items() if len(own) == 1}
    if absent:
        return Evidence(claim, arms, (), f"No finished and evaluated run of {listed(absent)} was found.")
    if several:
        reason = f"Several configs are named {listed(several)}: give the report the runs of one scale alone."
        return Evidence(claim, arms, (), reason)
    compared = [_found(one, arms, claim, results) for one in KINDS[claim.kind](claim, known.settings)]
    if not all(compared):
        return Evidence(claim, arms, (), "Its runs were not asked the same problems, or their scores are not known.")
    return Evidence(claim, arms, [one for one in compared if one], "")


def _arms_of(name: str, results: Results, same: Mapping[str, str]) -> list[Arm]:
    """The settled arms of that name, or of the other name of the same config; of several the baseline alone."""
    for called in (name, same.get(name, name)):
        arms = [arm for arm in results.arms if arm.settled and arm.id.rpartition("-")[0] == called]
        if arms:
            return [arm for arm in arms if arm.role == "baseline"] or arms
    return []


def _found(statement: Statement, arms: Mapping[str, Arm], claim: Claim, results: Results) -> Found | None:
    arm, baseline = arms[statement.arm], arms[statement.baseline]
    paired = arm.seeds == baseline.seeds
    sides = [Side(1, arm.used), Side(-statement.factor, baseline.used)]
    found = compare(sides, results.scores, results.steps, paired=paired)
    if not found:
        return None
    estimate = found[0].estimate.one(MEASURES.index((claim.which, claim.score)))
    if np.isnan(estimate.error[0]):
        return None
    fewest = min(len(arm.used), len(baseline.used))
    return Found(statement, estimate, fewest, 1 if paired else 2, found[0].problems)


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
