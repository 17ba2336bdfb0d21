"""Results → a verdict on each published claim."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.contrasts import LEVEL
from analysis.decisions import IDENTITY, REPORT_ONLY, Decision, Found, decide
from analysis.evidence import Evidence, gather, listed
from analysis.published import Claim, Published, Settings, published
from analysis.results import Results
from analysis.stats.corrections import holm_levels
from analysis.stats.power import seeds_needed

Word = Literal["reproduced", "contradicted", "not settled", "not run", "report only"]


@dataclass(frozen=True)
class Verdict:
    """What the runs say of one published claim.

    Attributes:
        id, source, section, says, kind, arms, baseline, published: the claim, as `published.Claim`.
        metric: what it is decided on, as mean@8 last.
        value, low, high: our difference in percentage points, with the interval on which the verdict rests, its level
            corrected for the other claims of the sweep. Where the claim is of several differences, the one that
            decides: the least sure of those that it needs, or the one that contradicts it. Of a `stability` claim, the
            arm's score minus the `kept` share of the baseline's. None where there is none.
        verdict: "reproduced" where the interval lies wholly where the claim has it, of every difference that the claim
            is of; "contradicted" where that of one lies wholly elsewhere; "not settled" where neither is so, or where
            an arm has one seed, since a claim about a method is a claim about all seeds; "not run" where an arm has no
            finished run or can have none; "report only" where nothing was claimed that could be false.
        seeds_needed: of what is not settled, the seeds an arm that would settle it with a chance of `power`, if the
            difference is as published, or where none was or it should have shown already, as ours; None where it
            cannot be told or no number of seeds would do.
        runs: the runs behind it.
        note: why the verdict is what it is, in a sentence or two.
    """

    id: str
    source: str
    section: str
    says: str
    kind: str
    metric: str
    arms: tuple[str, ...]
    baseline: tuple[str, ...]
    published: str
    value: float | None
    low: float | None
    high: float | None
    verdict: Word
    seeds_needed: int | None
    runs: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class _Answer:
    word: Word
    note: str
    found: Found | None = None
    alpha: float = 1 - LEVEL
    seeds: int | None = None


def verdicts(results: Results, *, known: Published | None = None) -> list[Verdict]:
    """The verdict on every claim of `claims.yaml`, or of `known`, in its order.

    Over the claims of one sweep a wrong verdict, "reproduced" of what is not so or "contradicted" of what is, has a
    chance of at most `settings.error`: Holm's correction over the two-sided p of each claim (`decisions.Decision`).
    """
    known = known or published()
    evidence = [gather(claim, results, known) for claim in known.claims]
    decisions = {each.claim.id: decide(each.found) for each in evidence if each.decidable}
    levels = _levels([each.claim for each in evidence], decisions, known.settings.error)
    answers = [
        _decided(each, decisions[each.claim.id], levels[each.claim.id], known.settings)
        if each.decidable
        else _undecided(each, results, known.settings)
        for each in evidence
    ]
    return [_verdict(each, answer, results) for each, answer in zip(evidence, answers, strict=True)]


# ---- what that comes to


def _levels(claims: Iterable[Claim], decisions: Mapping[str, Decision], error: float) -> dict[str, float]:
    """Of each decidable claim the α that Holm's correction over its sweep leaves it."""
    sweeps: dict[str | None, list[str]] = {}
    for claim in claims:
        if claim.id in decisions:
            sweeps.setdefault(claim.sweep, []).append(claim.id)
    levels = {}
    for ids in sweeps.values():
        found = holm_levels(np.array([decisions[id].p for id in ids]), alpha=error)
        levels |= {id: error if math.isnan(level) else float(level) for id, level in zip(ids, found, strict=True)}
    return levels


def _decided(evidence: Evidence, decision: Decision, alpha: float, settings: Settings) -> _Answer:
    one, settled = decision.deciding, decision.p <= alpha
    if decision.fails < decision.holds:
        alpha /= len(evidence.found)  # any of them may be the one that fails
    level = 100 * (1 - alpha)
    between = f"{one.statement.arm} − {_share(one.statement.factor)}{one.statement.baseline}"
    if math.isnan(decision.p):
        return _Answer("not settled", f"{between} does not vary at all, which tells nothing of other problems.", one)
    if settled:
        word: Word = "reproduced" if decision.holds < decision.fails else "contradicted"
        where = "where the claim has it" if word == "reproduced" else "where the claim has it not"
        return _Answer(word, f"The {level:.3g} % interval of {between} lies wholly {where}.", one, alpha)
    needed, at = _seeds_needed(evidence.claim, one, alpha, settings)
    more = f"{needed} seeds an arm, {needed - one.seeds} more, would settle" if needed else "No number of seeds settles"
    rest = f"{more} {at} of {one.problems} problems."
    return _Answer(
        "not settled", f"The {level:.3g} % interval of {between} is on both sides. {rest}", one, alpha, needed
    )


def _seeds_needed(claim: Claim, one: Found, alpha: float, settings: Settings) -> tuple[int | None, str]:
    ends = [end for end in (one.statement.low, one.statement.high) if math.isfinite(end)]
    sizes = {"a difference as ours on the average": float(one.estimate.value[0])}
    if claim.effect is not None:
        sizes = {"the published difference on the average": claim.effect / 100} | sizes
    at = ""
    for at, size in sizes.items():
        needed = seeds_needed(
            min(abs(size - end) for end in ends),
            between_seeds=float(one.estimate.between_seeds[0]),
            between_problems=float(one.estimate.between_problems[0]),
            seeds=one.seeds,
            sides=one.sides,
            problems=one.problems,
            alpha=alpha,
            power=settings.power,
        )
        if needed is None or needed > one.seeds:
            return needed, at
    return None, at


def _undecided(evidence: Evidence, results: Results, settings: Settings) -> _Answer:
    claim, found = evidence.claim, evidence.found
    if evidence.missing:
        return _Answer("not run", evidence.missing)
    if claim.kind == IDENTITY:
        return _identity(evidence, results, settings)
    largest = max(found, key=lambda one: abs(one.estimate.value[0]))
    if claim.kind == REPORT_ONLY:
        rest = f" Shown is {largest.statement.arm} − {largest.statement.baseline}, the largest difference."
        return _Answer("report only", claim.why + (rest if found[1:] else ""), largest)
    one = min(found, key=lambda one: one.seeds)
    names = [name for name, arm in evidence.arms.items() if len(arm.used) == 1]
    return _Answer("not settled", f"{listed(names)} ran with one seed, which tells nothing of how seeds differ.", one)


def _identity(evidence: Evidence, results: Results, settings: Settings) -> _Answer:
    """Whether the divergence from the teacher is no more than rounding at every step of every run."""
    training = results.records.training
    own = training[training["run"].isin(evidence.runs)]["divergence/reverse_kl"].abs().dropna()
    if own.empty:
        return _Answer("not run", "Its runs recorded no divergence from the teacher.")
    note = f"The largest divergence from the teacher at any step is {own.max():.2g} nats."
    return _Answer("reproduced" if own.max() <= settings.identity else "contradicted", note)


# ---- as it is shown


def _verdict(evidence: Evidence, answer: _Answer, results: Results) -> Verdict:
    claim, found = evidence.claim, answer.found
    value = low = high = None
    if found:
        ends = found.estimate.interval(1 - answer.alpha)[:, 0]
        value, low, high = (round(100 * float(number), 10) for number in (found.estimate.value[0], *ends))
    steadiness = _steadiness(evidence, results) if claim.kind == "stability" and not evidence.missing else ""
    return Verdict(
        **{name: getattr(claim, name) for name in ("id", "source", "section", "says", "kind", "arms", "baseline")},
        metric=f"{results.label(claim.score)} {claim.which}",
        published=claim.published,
        value=value,
        low=low,
        high=high,
        verdict=answer.word,
        seeds_needed=answer.seeds,
        runs=evidence.runs,
        note=answer.note + steadiness,
    )


def _steadiness(evidence: Evidence, results: Results) -> str:
    own = {run for name in evidence.claim.arms for run in evidence.arms[name].used}
    rows = results.steadiness[results.steadiness["run"].isin(own)]
    fell = sum(value is True for value in rows["collapsed"])
    spiked = int((rows["spikes"] > 0).sum())
    return f" Of its {len(rows)} runs {fell} lost half of their best score, {spiked} had spikes of the gradient norm."


def _share(factor: float) -> str:
    return "" if factor == 1 else f"{factor:.3g} × "
