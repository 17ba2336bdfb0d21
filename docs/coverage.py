"""`python -m docs.coverage`: how often intervals hold the truth and verdicts are wrong, as coverage.md.

Simulated runs with a known truth go through the code that makes the report's intervals and verdicts.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

from analysis.decisions import KINDS, UNTESTED, Finding, decide
from analysis.published import Claim, published
from analysis.stats.bootstrap import resampled_means, resampling_weights
from analysis.stats.corrections import holm_levels
from analysis.stats.intervals import block, estimate
from analysis.stats.small import beta_binomial_interval
from analysis.text import markdown_table

DOCS = Path(__file__).parent
K = 8
SEEDS, PROBLEMS = (1, 2, 3, 5), (30, 50, 200)
SPREADS = {"small": 0.05, "large": 0.3}  # between seeds, in the logit of a chance
HARDNESS, CENTRE, GAIN = 1.5, -0.5, 0.3  # spread over problems, the baseline's logit, what the arm adds to it
TRIALS, FEW_TRIALS, DRAWS = 2000, 400, 400
EFFECT = 0.05  # of a score, where power is measured
POOL = 60  # seeds of a baseline that has many

PAGE = """\
# How far the intervals and verdicts can be trusted

Made by `python -m docs.coverage`. Simulated runs with a known truth go through the code that makes the report's
intervals and verdicts: {k} answers a problem, right with a chance whose logit varies over problems (standard deviation
{hardness}) and over seeds ({small} where they differ little, {large} where they differ much).

## Intervals

How often in 100 a 95 % interval holds the truth. **t** is what the report shows: Student's t over variance components,
seeds and problems crossed (`analysis/stats/intervals.py`). **bootstrap** is the percentile bootstrap that draws as many
seeds and problems as there are. A difference is that of two arms on the same problems, each with seeds of its
own. With one seed the truth is that seed's own: what other seeds would score is in no interval of one.

{intervals}
{trials} trials of t, give or take {error:.1f}; {few} of the bootstrap, give or take {few_error:.1f}. The bootstrap is
too narrow wherever seeds differ and are few: two seeds have a variance of half of what they should. t is then wide,
which is the truth about two or three seeds, and a little wider than need be where seeds hardly differ.

## One run on 30 problems

mean@8 of one run whose chances are Beta distributed with this mean, the correlation of two answers to a problem 0.4.
The report uses the beta-binomial interval there.

{small_sets}
## Verdicts

How often in 100 at least one claim of a sweep is called reproduced or contradicted where neither is true: every
published difference is exactly where its claim turns false (no difference, a difference of just the margin, just the
share that counts as a collapse). Holm's correction promises at most 5. Every sweep that ships is here, on {problems}
problems. **Uneven**: seeds of the arms differ by 3 points, those of the baseline by 1. **Pool**: the baseline has
{pool} seeds, all differ by 3 points. **Power**: of 100 claims that are true, or false, by {points:g} points, how many
are called so, where seeds differ by 3 points; and with a baseline of {pool} seeds.

{verdicts}
{verdict_trials} trials, give or take {verdict_error:.1f} where 5 are wrong. One seed settles nothing, by rule. With two
seeds t has one or two degrees of freedom, and nearly nothing is settled: two seeds are enough to look, not to claim.
"""


def main() -> None:
    """Writes the page and prints its tables."""
    text = page()
    (DOCS / "coverage.md").write_text(text)
    print(text)


def page() -> str:
    """The page, with what was simulated."""
    rows = []
    for seeds, problems, (name, spread) in product(SEEDS, PROBLEMS, SPREADS.items()):
        if seeds > 1 or name == "small":
            found = [covered(seeds, problems, spread, sides=sides) for sides in (1, 2)]
            rows.append(
                (str(seeds), str(problems), "–" if seeds == 1 else name, *(f"{c:.1f}" for pair in found for c in pair))
            )
    head = ("seeds", "problems", "seeds differ", "one run: t", "bootstrap", "difference: t", "bootstrap")
    verdict_rows = [
        (
            sweep,
            str(len(tested(sweep))),
            str(seeds),
            *(f"{decided(sweep, seeds, *spreads):.1f}" for spreads in ((0.005, 0.005), (0.03, 0.03), (0.03, 0.01))),
            f"{decided(sweep, seeds, 0.03, 0.03, theirs=POOL):.1f}",
            *(f"{decided(sweep, seeds, 0.03, 0.03, theirs=theirs, more=EFFECT):.0f}" for theirs in (None, POOL)),
        )
        for sweep, seeds in product(sweeps(), SEEDS[1:])
    ]
    return PAGE.format(
        k=K,
        hardness=HARDNESS,
        **SPREADS,
        intervals=markdown_table(head, rows),
        trials=TRIALS,
        few=FEW_TRIALS,
        error=2 * 100 * (0.05 * 0.95 / TRIALS) ** 0.5,
        few_error=2 * 100 * (0.05 * 0.95 / FEW_TRIALS) ** 0.5,
        small_sets=markdown_table(("mean", "beta-binomial", "t"), [small_set(mean) for mean in (0.5, 0.2, 0.05, 0.02)]),
        problems=PROBLEMS[-1],
        points=100 * EFFECT,
        pool=POOL,
        verdicts=markdown_table(
            (
                *("sweep", "claims", "seeds", "wrong, seeds differ by 0.5 points", "by 3 points", "uneven", "pool"),
                *("power", "power, pool"),
            ),
            verdict_rows,
        ),
        verdict_trials=TRIALS,
        verdict_error=2 * 100 * (0.05 * 0.95 / TRIALS) ** 0.5,
    )


# ---- intervals


def covered(seeds: int, problems: int, spread: float, *, sides: int) -> tuple[float, float]:
    """In 100, how often t and the bootstrap hold the truth: of one arm, or of the difference of two (`sides`)."""
    rng = np.random.default_rng([seeds, problems, int(1000 * spread), sides - 1])
    hard = rng.normal(0, HARDNESS, (TRIALS, 1, problems))
    found = [_answers(rng, centre, hard, seeds, spread) for centre in (CENTRE + GAIN, CENTRE)[:sides]]
    signed = [sign * scores for sign, (scores, _) in zip((1, -1), found, strict=False)]
    truth = np.sum([sign * own for sign, (_, own) in zip((1, -1), found, strict=False)], axis=0)
    by_t = estimate([block(signed)]).interval(0.95)
    of_problems = resampling_weights(problems, drawn=problems, count=DRAWS, rng=rng)
    drawn = [
        resampled_means(
            scores[:FEW_TRIALS],
            seeds=resampling_weights(seeds, drawn=seeds, count=DRAWS, rng=rng),
            problems=of_problems,
        )
        for scores in signed
    ]
    few = np.quantile(np.sum(drawn, axis=0), [0.025, 0.975], axis=0)
    return _holds(by_t, truth), _holds(few, truth[:FEW_TRIALS])


def _answers(
    rng: np.random.Generator, centre: float, hard: np.ndarray, seeds: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of right answers, "trial seed problem", and each trial's true mean: over all seeds, or of its one."""
    trials = len(hard)
    shift = rng.normal(0, spread, (trials, seeds, 1))
    scores = rng.binomial(K, _chance(centre + shift - hard)) / K
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    own = shift[:, 0, 0] if seeds == 1 else np.zeros(trials)
    wide = HARDNESS if seeds == 1 else (HARDNESS**2 + spread**2) ** 0.5
    return scores, _chance(centre + own[:, None] + wide * points) @ (weights / weights.sum())


def _chance(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def _holds(interval: np.ndarray, truth: np.ndarray) -> float:
    return 100 * float(((interval[0] <= truth) & (truth <= interval[1])).mean())


def small_set(mean: float) -> tuple[str, str, str]:
    """A row: the mean, and in 100 how often the beta-binomial interval and t hold it."""
    rng = np.random.default_rng(int(1000 * mean))
    size = 1 / 0.4 - 1
    right = rng.binomial(K, rng.beta(mean * size, (1 - mean) * size, (TRIALS, 30)))
    by_t = estimate([block([right[:, None] / K])]).interval(0.95)
    bayes = np.array([beta_binomial_interval(trial, K, level=0.95) for trial in right]).T
    truth = np.full(TRIALS, mean)
    return f"{mean:g}", f"{_holds(bayes, truth):.1f}", f"{_holds(by_t, truth):.1f}"


# ---- verdicts


def sweeps() -> list[str]:
    """The sweeps with a claim that runs can decide."""
    return list(dict.fromkeys(claim.sweep for claim in published().claims if claim.sweep and tested(claim.sweep)))


def tested(sweep: str) -> list[Claim]:
    """The claims of a sweep that are corrected together."""
    return [claim for claim in published().claims if claim.sweep == sweep and claim.kind not in UNTESTED]


def decided(
    sweep: str,
    seeds: int,
    between: float,
    between_theirs: float,
    *,
    theirs: int | None = None,
    more: float = 0.0,
    trials: int = TRIALS,
) -> float:
    """In 100: where all claims of the sweep are on the edge, the trials in which any has a verdict; where the arms are
    `more` above the edge, the claims that have one. The baseline has `theirs` seeds, or as many as the arms.
    """
    settings, claims, problems = published().settings, tested(sweep), PROBLEMS[-1]
    rng = np.random.default_rng([seeds, problems, int(1000 * between), int(1000 * more)])
    hard = rng.uniform(-0.25, 0.25, (trials, 1, problems))

    def drawn(share: float, above: float, number: int, spread: float) -> np.ndarray:
        chance = share * (0.5 + hard + rng.normal(0, spread, (trials, number, 1))) + above
        return rng.binomial(K, chance.clip(0, 1)) / K

    def arm(share: float, above: float) -> np.ndarray:
        return drawn(share, above, seeds, between)

    baseline, arms = drawn(1, 0, theirs or seeds, between_theirs), dict[tuple[str, float, float], np.ndarray]()
    made = [_on_the_edge(claim, arms, arm, baseline, more) for claim in claims]
    verdicts = np.zeros((trials, len(claims)), dtype=bool)
    for trial in range(trials):
        decisions = [decide([Finding(one, est.one(trial), seeds, problems) for one, est in found]) for found in made]
        p = np.array([decision.p for decision in decisions])
        verdicts[trial] = p <= holm_levels(p, alpha=settings.error)
    return 100 * float(verdicts.mean() if more else verdicts.any(axis=1).mean())


def _on_the_edge(
    claim: Claim, arms: dict, arm: Callable[[float, float], np.ndarray], baseline: np.ndarray, more: float
) -> list[tuple]:
    """The claim's statements, with estimates of arms that are `more` above where the statement turns false."""
    found, statements = [], KINDS[claim.kind](claim, published().settings)
    one_arm = len({one.arm for one in statements}) < len(statements)  # then its baselines are varied
    for one in statements:
        edge = (one.high if np.isfinite(one.high) else one.low) + more
        key = (one.baseline, one.factor, -edge) if one_arm else (one.arm, one.factor, edge)
        if key not in arms:
            arms[key] = arm(*key[1:])
        ours, theirs = (baseline, arms[key]) if one_arm else (arms[key], baseline)
        found.append((one, estimate([block([ours, -one.factor * theirs])])))
    return found


if __name__ == "__main__":
    main()
