"""The evidence that the runs hold on a published claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.arms import Arm
from analysis.comparison import Side, compare
from analysis.decisions import KINDS, NOT_RUN, UNTESTED, Finding, Statement
from analysis.outcomes import MEASURES
from analysis.published import Claim, Published
from analysis.results import Results


@dataclass(frozen=True)
class Evidence:
    """A claim with its findings on its statements, or the reason why there are none.

    Attributes:
        missing: why no runs test it; "" where some do.
        hidden: why they cannot show it: its mechanism is absent, or what it compares are the same runs; "" where they
            can.
        built_in: whether the world of its runs was built so that the effect is bound to show.
        same: which of its arms are the same runs and counted once; "" where none are.
    """

    claim: Claim
    arms: Mapping[str, Arm]
    findings: Sequence[Finding]
    missing: str = ""
    hidden: str = ""
    built_in: bool = False
    same: str = ""

    @property
    def decidable(self) -> bool:
        """Whether it is tested, and so counts in the correction for multiple comparisons."""
        unfit = self.missing or self.hidden or self.built_in or self.claim.kind in UNTESTED
        return not unfit and min(one.seeds for one in self.findings) > 1

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
        which = ", ".join(arm.label for name in several for arm in named[name])
        reason = f"Several configs are named {listed(several)} ({which}): give all but the published one a name= of"
        reason += " their own, or report the runs of one scale at a time."
        return Evidence(claim, arms, (), reason)
    scales = {_scale(arm, results) for arm in arms.values()}
    if scales & set(claim.built_in):
        return Evidence(claim, arms, (), built_in=True)
    if hidden := _without_witness(claim, arms, results, known):
        return Evidence(claim, arms, (), hidden=hidden)
    first = _first_alike(arms, results)
    statements = {}
    settings = known.settings.at(scales.pop() if len(scales) == 1 else None)
    for one in KINDS[claim.kind](claim, settings):
        statements.setdefault((first[one.arm], first[one.baseline]), one)
    if alike := [f"{one.arm} and {one.baseline}" for (arm, baseline), one in statements.items() if arm == baseline]:
        return Evidence(claim, arms, (), hidden=f"{listed(alike)} have the same results, number by number.")
    findings = [_test(one, arms, claim, results) for one in statements.values()]
    if not all(findings):
        return Evidence(claim, arms, (), "Its runs did not answer the same problems, or their scores are unknown.")
    return Evidence(claim, arms, [one for one in findings if one], same=_counted_once(first))


def _scale(arm: Arm, results: Results) -> str | None:
    details = results.records.details.get(arm.id)
    return details.config.get("scale.name") if details else None


def _without_witness(claim: Claim, arms: Mapping[str, Arm], results: Results, known: Published) -> str:
    """Why the mechanism of the claim is not at work in its runs; "" where it is, or none is needed."""
    if claim.witness is None:
        return ""
    witness, training = known.witnesses[claim.witness], results.records.training
    runs = {run for arm in arms.values() for run in arm.used}
    measured = training.loc[training["run"].isin(runs), witness.metric] if witness.metric in training else None
    value = float(measured.mean()) if measured is not None else float("nan")
    if value >= witness.least:
        return ""
    said = "was not recorded" if np.isnan(value) else f"is {value:.2g}"
    return f"It needs that {witness.says}: {witness.metric} {said}, where {witness.least:g} was asked for beforehand."


def _first_alike(arms: Mapping[str, Arm], results: Results) -> dict[str, str]:
    """Each arm's name → the first that has the same results: every score of every problem at every step."""
    first: dict[str, str] = {}
    for name, arm in arms.items():
        first[name] = next((other for other in first if results.scores.same_arms(arm, arms[other])), name)
    return first


def _counted_once(first: Mapping[str, str]) -> str:
    groups = [[name for name in first if first[name] == one] for one in dict.fromkeys(first.values())]
    same = [listed(group) for group in groups if len(group) > 1]
    return f" The results of {'; of '.join(same)} are the same, number by number, and count once." if same else ""


def _arms(name: str, results: Results, same: Mapping[str, str]) -> list[Arm]:
    """The arms of that name that count, or of the other name of its config; of several the baseline alone."""
    for alias in (name, same.get(name, name)):
        arms = [arm for arm in results.arms if arm.counted and arm.id.rpartition("-")[0] == alias]
        if arms:
            return [arm for arm in arms if arm.role == "baseline"] or arms
    return []


def _test(statement: Statement, arms: Mapping[str, Arm], claim: Claim, results: Results) -> Finding | None:
    arm, baseline = arms[statement.arm], arms[statement.baseline]
    sides = [Side(1, arm.used), Side(-statement.factor, baseline.used)]
    compared = compare(sides, results.scores, results.steps)
    if not compared:
        return None
    estimate = compared[0].estimate.one(MEASURES.index((claim.which, claim.score)))
    if np.isnan(estimate.error[0]):
        return None
    fewest = min(len(arm.used), len(baseline.used))
    return Finding(statement, estimate, fewest, compared[0].problems)


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
