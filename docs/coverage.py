"""`python -m docs.coverage`: how often intervals hold the truth and verdicts are wrong, as coverage.md.

Simulated runs with a known truth go through the code that makes the report's intervals and verdicts.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

from analysis.decisions import KINDS, Finding, decide
from analysis.published import Claim, published
from analysis.stats.bootstrap import resampled_means, resampling_weights
from analysis.stats.corrections import holm_levels
from analysis.stats.intervals import block, estimate
from analysis.stats.small import beta_binomial_interval

DOCS = Path(__file__).parent
K = 8
SEEDS, PROBLEMS = (1, 2, 3, 5), (30, 50, 200)
SPREADS = {"small": 0.05, "large": 0.3}  # between seeds, in the logit of a chance
HARDNESS, CENTRE, GAIN = 1.5, -0.5, 0.3  # spread over problems, the baseline's logit, what the arm adds to it
TRIALS, FEW_TRIALS, DRAWS = 2000, 400, 400

PAGE = """\
# How far the intervals and verdicts can be trusted

Made by `python -m docs.coverage`. Simulated runs with a known truth go through the code that makes the report's
intervals and verdicts: {k} answers a problem, right with a chance whose logit varies over problems (standard deviation
{hardness}) and over seeds ({small} where they differ little, {large} where they differ much).

## Intervals

How often in 100 a 95 % interval holds the truth. **t** is what the report shows: Student's t over variance components,
seeds and problems crossed (`analysis/stats/intervals.py`). **bootstrap** is the percentile bootstrap that draws as many
seeds and problems as there are. Differences are paired over problems and seeds. With one seed the truth is that
seed's own: what other seeds would score is in no interval of one.

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
share that counts as a collapse). Holm's correction promises at most 5.

{verdicts}
{verdict_trials} trials, give or take {verdict_error:.1f}. One seed settles nothing, by rule.
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
            found = [covered(seeds, problems, spread, paired=paired) for paired in (False, True)]
            rows.append(
                (str(seeds), str(problems), "–" if seeds == 1 else name, *(f"{c:.1f}" for pair in found for c in pair))
            )
    head = ("seeds", "problems", "seeds differ", "one run: t", "bootstrap", "difference: t", "bootstrap")
    verdict_rows = [
        (
            sweep,
            str(seeds),
            str(problems),
            *(f"{wrong_verdicts(sweep, seeds, problems, between):.1f}" for between in (0.005, 0.03)),
        )
        for sweep, seeds, problems in product(("stability", "ensemble", "filter"), SEEDS[1:], (30, 200))
    ]
    return PAGE.format(
        k=K,
        hardness=HARDNESS,
        **SPREADS,
        intervals=_table(head, rows),
        trials=TRIALS,
        few=FEW_TRIALS,
        error=2 * 100 * (0.05 * 0.95 / TRIALS) ** 0.5,
        few_error=2 * 100 * (0.05 * 0.95 / FEW_TRIALS) ** 0.5,
        small_sets=_table(("mean", "beta-binomial", "t"), [small_set(mean) for mean in (0.5, 0.2, 0.05, 0.02)]),
        verdicts=_table(("sweep", "seeds", "problems", "seeds differ by 0.5 points", "by 3 points"), verdict_rows),
        verdict_trials=FEW_TRIALS,
        verdict_error=2 * 100 * (0.05 * 0.95 / FEW_TRIALS) ** 0.5,
    )


# ---- intervals


def covered(seeds: int, problems: int, spread: float, *, paired: bool) -> tuple[float, float]:
    """In 100, how often t and the bootstrap hold the truth: of one arm, or of the difference of two."""
    rng = np.random.default_rng([seeds, problems, int(1000 * spread), paired])
    hard = rng.normal(0, HARDNESS, (TRIALS, 1, problems))
    scores, truth = _answers(rng, CENTRE + GAIN, hard, seeds, spread)
    if paired:
        theirs, their_truth = _answers(rng, CENTRE, hard, seeds, spread)
        scores, truth = scores - theirs, truth - their_truth
    by_t = estimate([block([scores])]).interval(0.95)
    few = scores[:FEW_TRIALS]
    weights = [resampling_weights(size, drawn=size, count=DRAWS, rng=rng) for size in (seeds, problems)]
    drawn = resampled_means(few, seeds=weights[0], problems=weights[1])
    return _holds(by_t, truth), _holds(np.quantile(drawn, [0.025, 0.975], axis=0), truth[:FEW_TRIALS])


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


def wrong_verdicts(sweep: str, seeds: int, problems: int, between: float) -> float:
    """In 100, how often any claim of the sweep has a verdict where all of them are on the edge."""
    settings, claims = published().settings, [claim for claim in published().claims if claim.sweep == sweep]
    claims = [claim for claim in claims if claim.kind != "report only"]
    rng = np.random.default_rng([seeds, problems, int(1000 * between)])
    hard = rng.uniform(-0.25, 0.25, (FEW_TRIALS, 1, problems))

    def arm(share: float, more: float) -> np.ndarray:
        chance = share * (0.5 + hard + rng.normal(0, between, (FEW_TRIALS, seeds, 1))) + more
        return rng.binomial(K, chance.clip(0, 1)) / K

    baseline, arms = arm(1, 0), dict[tuple[str, float, float], np.ndarray]()
    made = [_on_the_edge(claim, arms, arm, baseline) for claim in claims]
    wrong = 0
    for trial in range(FEW_TRIALS):
        decisions = [decide([Finding(one, est.one(trial), seeds, 1, problems) for one, est in found]) for found in made]
        p = np.array([decision.p for decision in decisions])
        wrong += bool((p <= holm_levels(p, alpha=settings.error)).any())
    return 100 * wrong / FEW_TRIALS


def _on_the_edge(
    claim: Claim, arms: dict, arm: Callable[[float, float], np.ndarray], baseline: np.ndarray
) -> list[tuple]:
    """The claim's statements, with estimates of arms that are exactly where the statement turns false."""
    found = []
    for one in KINDS[claim.kind](claim, published().settings):
        edge = one.high if np.isfinite(one.high) else one.low
        varied = one.arm if one.baseline in claim.baseline[:1] and not claim.baseline[1:] else one.baseline
        key = (varied, one.factor, edge)
        if key not in arms:
            arms[key] = arm(one.factor, edge)
        ours, theirs = (arms[key], baseline) if varied == one.arm else (baseline, arms[key])
        found.append((one, estimate([block([ours - one.factor * theirs])])))
    return found


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---:",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
