"""The evidence that the runs hold on a published claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.arms import Arm
from analysis.comparison import Side, compare
from analysis.decisions import IDENTITY, KINDS, NOT_RUN, REPORT_ONLY, Finding, Statement
from analysis.outcomes import MEASURES
from analysis.published import Claim, Published
from analysis.results import Results


@dataclass(frozen=True)
class Evidence:
    """A claim with its findings on its statements, or the reason (`missing`) why there are none."""

    claim: Claim
    arms: Mapping[str, Arm]
    findings: Sequence[Finding]
    missing: str

    @property
    def decidable(self) -> bool:
        """Whether it is tested, and so counts in the correction for multiple comparisons."""
        undecided = (REPORT_ONLY, NOT_RUN, IDENTITY)
        return not self.missing and self.claim.kind not in undecided and min(one.seeds for one in self.findings) > 1

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs of all its arms."""
        return tuple(dict.fromkeys(run for arm in self.arms.values() for run in arm.used))


def gather(claim: Claim, results: Results, known: Published) -> Evidence:
    """Tests the statements of the claim on the runs."""
    if claim.kind == NOT_RUN:
        return Evidence(claim, {}, (), claim.why)
    named = {name: _arms(name, results, known.same) for name in dict.fromkeys((*claim.arms, *claim.baseline))}
    absent = [name for name, arms in named.items() if not arms]
    several = [name for name, arms in named.items() if len(arms) > 1]
    arms = {name: own[0] for name, own in named.items() if len(own) == 1}
    if absent:
        return Evidence(claim, arms, (), f"There is no finished and evaluated run of {listed(absent)}.")
    if several:
        reason = f"Several configs are named {listed(several)}: report the runs of one scale at a time."
        return Evidence(claim, arms, (), reason)
    findings = [_test(one, arms, claim, results) for one in KINDS[claim.kind](claim, known.settings)]
    if not all(findings):
        return Evidence(claim, arms, (), "Its runs did not answer the same problems, or their scores are unknown.")
    return Evidence(claim, arms, [one for one in findings if one], "")


def _arms(name: str, results: Results, same: Mapping[str, str]) -> list[Arm]:
    """The arms of that name that count, or of the other name of its config; of several the baseline alone."""
    for alias in (name, same.get(name, name)):
        arms = [arm for arm in results.arms if arm.counted and arm.id.rpartition("-")[0] == alias]
        if arms:
            return [arm for arm in arms if arm.role == "baseline"] or arms
    return []


def _test(statement: Statement, arms: Mapping[str, Arm], claim: Claim, results: Results) -> Finding | None:
    arm, baseline = arms[statement.arm], arms[statement.baseline]
    paired = arm.seeds == baseline.seeds
    sides = [Side(1, arm.used), Side(-statement.factor, baseline.used)]
    compared = compare(sides, results.scores, results.steps, paired=paired)
    if not compared:
        return None
    estimate = compared[0].estimate.one(MEASURES.index((claim.which, claim.score)))
    if np.isnan(estimate.error[0]):
        return None
    fewest = min(len(arm.used), len(baseline.used))
    return Finding(statement, estimate, fewest, 1 if paired else 2, compared[0].problems)


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
