"""Verdicts on published claims."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.contrasts import LEVEL
from analysis.decisions import IDENTITY, REPORT_ONLY, Decision, Finding, decide
from analysis.evidence import Evidence, gather, listed
from analysis.outcomes import SHARES
from analysis.published import Claim, Published, Settings, published
from analysis.results import Results
from analysis.stats.corrections import holm_levels
from analysis.stats.power import seeds_needed

Word = Literal["reproduced", "contradicted", "not settled", "cannot show here", "built in", "not run", "report only"]


@dataclass(frozen=True)
class Verdict:
    """The verdict of the runs on one published claim.

    Attributes:
        claim: the claim.
        verdict: "reproduced" where the interval of every difference that the claim is about lies entirely
            within the claim; "contradicted" where one lies entirely outside it; "not settled" where
            neither holds, or where an arm has one seed, since a claim about a method is a claim about all seeds; "not
            run" where an arm has no finished run or cannot have one; "report only" where nothing was claimed that could
            be false.
        metric: the score that it is decided on, such as mean@8 last.
        value, low, high: our difference in percentage points and its interval, whose level is corrected for the other
            claims of the sweep. Of several differences the deciding one (`decisions.Decision`). For a `stability`
            claim, the arm's score minus the `kept` share of the baseline's. None where there is none.
        seeds_needed: for a claim that is not settled, the seeds per arm that would settle it with probability `power`
            if the difference is as published, or as ours where none was published or it would be significant already;
            None where that is unknown or no number is enough.
        runs: the runs behind it.
        note: the reason for the verdict, in a sentence or two.
    """

    claim: Claim
    verdict: Word
    metric: str
    value: float | None
    low: float | None
    high: float | None
    seeds_needed: int | None
    runs: tuple[str, ...]
    note: str


def verdicts(results: Results, *, known: Published | None = None) -> list[Verdict]:
    """The verdict on every claim of `claims.yaml`, or of `known`, in its order.

    The chance of any wrong verdict ("reproduced" of a false claim, "contradicted" of a true one) among the claims of
    one sweep is at most `settings.error`, by Holm's correction of the two-sided p-values (`decisions.Decision`).
    """
    known = known or published()
    evidence = [gather(claim, results, known) for claim in known.claims]
    decisions = {each.claim.id: decide(each.findings) for each in evidence if each.decidable}
    levels = _levels([each.claim for each in evidence], decisions, known.settings.error)
    return [
        _decided(each, decisions[each.claim.id], levels[each.claim.id], results, known.settings)
        if each.decidable
        else _undecided(each, results, known.settings)
        for each in evidence
    ]


def _levels(claims: Iterable[Claim], decisions: Mapping[str, Decision], error: float) -> dict[str, float]:
    """The α that Holm's correction over its sweep leaves each decidable claim."""
    sweeps: dict[str | None, list[str]] = {}
    for claim in claims:
        if claim.id in decisions:
            sweeps.setdefault(claim.sweep, []).append(claim.id)
    levels = {}
    for ids in sweeps.values():
        own = holm_levels(np.array([decisions[id].p for id in ids]), alpha=error)
        levels |= {id: error if math.isnan(level) else float(level) for id, level in zip(ids, own, strict=True)}
    return levels


def _decided(evidence: Evidence, decision: Decision, alpha: float, results: Results, settings: Settings) -> Verdict:
    one, word = decision.deciding, decision.word(alpha)
    statement = one.statement
    factor = "" if statement.factor == 1 else f"{statement.factor:.3g} × "
    difference = f"{statement.arm} − {factor}{statement.baseline}"
    if math.isnan(decision.p):
        note = f"{difference} does not vary at all, which says nothing about other problems."
        return _verdict(evidence, results, "not settled", note, one)
    if decision.fails < decision.holds:
        alpha /= len(evidence.findings)  # any of them may be the one that fails
    interval = f"The {100 * (1 - alpha):.3g} % interval of {difference}"
    margin = max((abs(end) for end in (statement.low, statement.high) if math.isfinite(end)), default=0.0)
    claimed = f"the claim, which has a margin of {100 * margin:.3g} points" if margin else "the claim"
    if word != "not settled":
        side = "within" if word == "reproduced" else "outside"
        return _verdict(evidence, results, word, f"{interval} lies entirely {side} {claimed}.", one, alpha)
    needed, at = _seeds_needed(evidence.claim, one, alpha, settings)
    more = (
        f"{needed} seeds per arm, {needed - one.seeds} more, would settle" if needed else "No number of seeds settles"
    )
    note = f"{interval} lies partly within {claimed}. {more} {at} {one.problems} problems."
    return _verdict(evidence, results, "not settled", note, one, alpha, needed)


def _seeds_needed(claim: Claim, one: Finding, alpha: float, settings: Settings) -> tuple[int | None, str]:
    """The seeds per arm that would settle the claim, and the difference that this assumes, in words."""
    ends = [end for end in (one.statement.low, one.statement.high) if math.isfinite(end)]
    sizes = {"a difference the size of ours over": float(one.estimate.value[0])}
    if claim.effect is not None:
        sizes = {"the published difference over": claim.effect / 100} | sizes
    at = ""
    for at, size in sizes.items():
        needed = seeds_needed(
            min(abs(size - end) for end in ends),
            between_seeds=float(one.estimate.between_seeds[0]),
            between_problems=float(one.estimate.between_problems[0]),
            seeds=one.seeds,
            df=float(one.estimate.df[0]),
            alpha=alpha,
            power=settings.power,
        )
        if needed is None or needed > one.seeds:
            return needed, at
    return None, at


def _undecided(evidence: Evidence, results: Results, settings: Settings) -> Verdict:
    claim, findings = evidence.claim, evidence.findings
    if evidence.missing:
        return _verdict(evidence, results, "not run", evidence.missing)
    if evidence.built_in:
        note = "This world was built so that the effect is bound to show: its runs are no evidence for it."
        return _verdict(evidence, results, "built in", note)
    if evidence.hidden:
        return _verdict(evidence, results, "cannot show here", evidence.hidden)
    if claim.kind == IDENTITY:
        return _identity(evidence, results, settings)
    if claim.kind == REPORT_ONLY:
        largest = max(findings, key=lambda one: abs(one.estimate.value[0]))
        shown = f" Shown: {largest.statement.arm} − {largest.statement.baseline}, the largest difference."
        return _verdict(evidence, results, "report only", claim.why + (shown if findings[1:] else ""), largest)
    names = listed([name for name, arm in evidence.arms.items() if len(arm.used) == 1])
    note = f"{names} ran with one seed, which says nothing about how seeds differ."
    return _verdict(evidence, results, "not settled", note, min(findings, key=lambda one: one.seeds))


def _identity(evidence: Evidence, results: Results, settings: Settings) -> Verdict:
    """Whether the divergence from the teacher is no more than rounding at every step of every run."""
    training = results.records.training
    own = training[training["run"].isin(evidence.runs)]["divergence/reverse_kl"].abs().dropna()
    if own.empty:
        return _verdict(evidence, results, "not run", "Its runs recorded no divergence from the teacher.")
    note = f"The largest divergence from the teacher at any step is {own.max():.2g} nats."
    return _verdict(evidence, results, "reproduced" if own.max() <= settings.identity else "contradicted", note)


def _verdict(
    evidence: Evidence,
    results: Results,
    word: Word,
    note: str,
    deciding: Finding | None = None,
    alpha: float = 1 - LEVEL,
    seeds: int | None = None,
) -> Verdict:
    claim, value, low, high = evidence.claim, None, None, None
    if deciding:
        ends = deciding.estimate.interval(1 - alpha, shares=claim.score in SHARES)[:, 0]
        value, low, high = (round(100 * float(number), 10) for number in (deciding.estimate.value[0], *ends))
    if claim.kind == "stability" and evidence.findings:
        note += _steadiness(evidence, results)
    metric = f"{results.label(claim.score)} {claim.which}"
    note += evidence.same
    return Verdict(claim, word, metric, value, low, high, seeds, evidence.runs, note)


def _steadiness(evidence: Evidence, results: Results) -> str:
    own = {run for name in evidence.claim.arms for run in evidence.arms[name].used}
    rows = results.steadiness[results.steadiness["run"].isin(own)]
    collapsed = sum(value is True for value in rows["collapsed"])
    spiked = int((rows["spikes"] > 0).sum())
    return f" Of its {len(rows)} runs, {collapsed} lost half of their best score, {spiked} had gradient norm spikes."
