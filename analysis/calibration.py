"""python -m analysis.calibration runs=DIR [baseline=default]

Measures the instrument with runs whose truth is known. `runs` is a study with many seeds of one arm, the pool, and
with arms that are known to differ from it, the controls (`+sweep=calibration`); or its export. Prints, in Markdown:

  A/A               how often two disjoint blocks of the pool, which differ in nothing, are called different, by kind
                    of statement, number of seeds, paired and unpaired
  controls          how often a control is called different from the pool
  smallest          the difference that is found with a power of 80 %, by metric and number of seeds
  narrowest         the margin within which two equal arms are called equal with that power
  spread            where the differences between seeds come from: the error of one evaluation, and the rest

  runs=DIR          as in analysis.report
  baseline=default  the name of the pool
  pairs=2000        random pairs of blocks for each number: 100 to 100000
  margin=0          points, of the statements of equivalence; 0: as claims have it at the scale of the pool
  seed=0            of the pairs
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from scipy import stats

from analysis import command
from analysis.comparison import Side, compare
from analysis.contrasts import Bootstrap
from analysis.decisions import UNTESTED, Finding, Statement, decide
from analysis.outcomes import MEASURES
from analysis.pack import opened
from analysis.published import published
from analysis.report import read_records
from analysis.results import Results, analyse
from analysis.text import markdown_table
from opd.errors import UserError

SEEDS = (3, 5, 10, 20)
METRICS = (("last", "mean"), ("last", "best"), ("last", "maj"), ("max", "mean"), ("last", "truncated"))
ALPHA, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Arguments:
    """The command's arguments; the module's docstring describes each."""

    runs: Path
    baseline: str = "default"
    pairs: Annotated[int, Ge(100), Le(100_000)] = 2000
    margin: Annotated[float, Ge(0)] = 0.0
    seed: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class Blocks:
    """Pairs of sets of runs, each of `size` seeds, that are compared in every metric.

    Attributes:
        differences: "pair metric", ours minus theirs.
        p: the two-sided p-values, "pair metric".
        decisions: of the pairs, the words that the kinds of statement get in mean@k last: kind → "pair" of
            "reproduced", "contradicted" or "not settled".
    """

    size: int
    paired: bool
    differences: np.ndarray
    p: np.ndarray
    decisions: dict[str, np.ndarray]


def calibrate(arguments: Arguments) -> str:
    """The tables, as Markdown. Raises `UserError`."""
    with opened(arguments.runs) as runs:
        records = read_records(runs)
    results = analyse(records, baseline=arguments.baseline, bootstrap=Bootstrap(count=100, seed=0))
    pool = results.baseline
    if pool is None or len(pool.used) < 2 * min(SEEDS):
        raise UserError(f"baseline={arguments.baseline}: fewer than {2 * min(SEEDS)} runs of it are finished")
    rng = np.random.default_rng(arguments.seed)
    details = records.details.get(pool.id)
    scale = details.config.get("scale.name") if details else None
    margin = (arguments.margin or published().settings.at(scale).margin) / 100
    same = [
        draw(results, pool.used, pool.used, size, paired, margin=margin, pairs=arguments.pairs, rng=rng)
        for size in SEEDS
        if 2 * size <= len(pool.used)
        for paired in (True, False)
    ]
    controls = {
        arm.label: [
            draw(results, arm.used, pool.used, size, paired, margin=margin, pairs=arguments.pairs, rng=rng)
            for size in SEEDS
            if size <= len(arm.used)
            for paired in (True, False)
        ]
        for arm in results.arms
        if arm.role == "arm" and arm.counted
    }
    parts = [
        f"{len(pool.used)} runs of {pool.label}; {arguments.pairs} pairs of blocks for each number.\n",
        f"## A/A: called different, of 100 pairs that are not\n\n{_aa_table(results, same)}",
        *([f"## Controls: called different, of 100 pairs\n\n{_control_table(controls)}"] if controls else []),
        f"## Smallest difference found in four of five studies, points\n\n{_smallest_table(results, same)}",
        f"## Narrowest margin of equivalence, points\n\n{_narrowest_table(results, same)}",
        f"## Where the spread between seeds comes from\n\n{_spread_table(results, pool.used)}",
    ]
    return "\n".join(parts)


def draw(
    results: Results,
    ours: Sequence[str],
    theirs: Sequence[str],
    size: int,
    paired: bool,
    *,
    margin: float,
    pairs: int,
    rng: np.random.Generator,
) -> Blocks:
    """Random pairs of disjoint blocks. Paired ones are renumbered: the i-th run of one with the i-th of the other."""
    differences, p, decisions = [], [], dict[str, list[str]]()
    for left, right in _blocks(ours, theirs, size, pairs, rng):
        one = compare([Side(1, left), Side(-1, right)], results.scores, results.steps, paired=paired)[0]
        rows = [MEASURES.index(metric) for metric in METRICS]
        differences.append(one.estimate.value[rows])
        p.append(one.estimate.p_two_sided()[rows])
        for kind, (low, high) in _kinds(margin).items():
            finding = Finding(Statement("a", "b", low, high), one.estimate.one(rows[0]), size, one.problems)
            decisions.setdefault(kind, []).append(decide([finding]).word(ALPHA))
    words = {kind: np.array(each) for kind, each in decisions.items()}
    return Blocks(size, paired, np.array(differences), np.array(p), words)


def _kinds(margin: float) -> dict[str, tuple[float, float]]:
    return {"direction": (0.0, np.inf), "no worse": (-margin, np.inf), "equivalence": (-margin, margin)}


def _blocks(
    ours: Sequence[str], theirs: Sequence[str], size: int, pairs: int, rng: np.random.Generator
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    for _ in range(pairs):
        left = rng.choice(len(ours), size, replace=False)
        others = [run for run in theirs if run not in {ours[at] for at in left}]
        right = rng.choice(len(others), size, replace=False)
        yield tuple(str(ours[at]) for at in left), tuple(str(others[at]) for at in right)


def narrowest(spread: float, size: int, *, alpha: float = ALPHA) -> float:
    """The least margin within which two equal arms of `size` runs each are called equal with the probability `POWER`.

    The two one-sided tests, each at `alpha` / 2, call them equal if |D| + t s < margin, D normal with the standard
    error e and s its estimate, e √(χ² / df). Solves mean over χ² of [2 Φ((margin - t s) / e) - 1]₊ = POWER.
    """
    from scipy.optimize import brentq

    df, error = 2 * (size - 1), spread * np.sqrt(2 / size)
    estimated = stats.chi.ppf((np.arange(1000) + 0.5) / 1000, df) / df**0.5
    critical = stats.t.ppf(1 - alpha / 2, df)

    def lacking(margin: float) -> float:
        return float((2 * stats.norm.cdf(margin - critical * estimated) - 1).clip(0).mean()) - POWER

    return float(brentq(lacking, 1e-6, 3 + 3 * critical)) * error  # pyright: ignore[reportArgumentType]


def smallest(spread: float, size: int, *, sides: int, alpha: float = ALPHA) -> float:
    """The smallest true difference that is found with the probability `POWER` by a two-sided test at `alpha`.

    Solves P(|T| > t) = POWER for T noncentral t with `sides` (size - 1) degrees of freedom, where `spread` is the
    standard deviation of a paired difference (one side) or of a run (two sides, of equal spread).
    """
    from scipy.optimize import brentq

    df, error = sides * (size - 1), spread * np.sqrt(sides / size)
    critical = stats.t.ppf(1 - alpha / 2, df)

    def lacking(effect: float) -> float:
        return float(stats.nct.sf(critical, df, effect)) - POWER  # the other tail is nearly 0 there

    return float(brentq(lacking, 1e-6, 3 + 1.5 * critical)) * error  # pyright: ignore[reportArgumentType]


# ---- tables


def _aa_table(results: Results, blocks: Sequence[Blocks]) -> str:
    head = ["seeds", "", *(f"{results.label(score)} {which}" for which, score in METRICS)]
    head += ["direction", "no worse: wrong", "equivalence: wrong", "equivalence: right"]
    rows = []
    for one in blocks:
        words = one.decisions
        shares = [
            *(one.p <= ALPHA).mean(axis=0),
            (words["direction"] != "not settled").mean(),
            (words["no worse"] == "contradicted").mean(),
            (words["equivalence"] == "contradicted").mean(),
            (words["equivalence"] == "reproduced").mean(),
        ]
        rows.append([str(one.size), _paired(one), *(f"{100 * share:.1f}" for share in shares)])
    return markdown_table(head, rows)


def _control_table(controls: dict[str, list[Blocks]]) -> str:
    sizes = [(one.size, one.paired) for one in max(controls.values(), key=len)]
    head = ["control", "points", *(f"{size} {'paired' if paired else 'unpaired'}" for size, paired in sizes)]
    rows = []
    for name, blocks in controls.items():
        found = {(one.size, one.paired): f"{100 * (one.p[:, 0] <= ALPHA).mean():.0f}" for one in blocks}
        mean = 100 * blocks[-1].differences[:, 0].mean()
        rows.append([name, f"{mean:+.1f}", *(found.get(size, "–") for size in sizes)])
    return markdown_table(head, rows)


def _smallest_table(results: Results, blocks: Sequence[Blocks]) -> str:
    largest = _largest()
    head = ["metric", *(f"{size} seeds, {kind}" for size in SEEDS for kind in ("paired", "unpaired"))]
    head += [f"{size} seeds, unpaired, corrected for {largest}" for size in SEEDS]
    rows = []
    for at, (which, score) in enumerate(METRICS):
        spread = _spread(blocks, at)
        cells = [
            smallest(spread * (2**0.5 if sides == 1 else 1), size, sides=sides) for size in SEEDS for sides in (1, 2)
        ]
        cells += [smallest(spread, size, sides=2, alpha=ALPHA / largest) for size in SEEDS]
        rows.append([f"{results.label(score)} {which}", *(f"{100 * cell:.1f}" for cell in cells)])
    return markdown_table(head, rows)


def _narrowest_table(results: Results, blocks: Sequence[Blocks]) -> str:
    largest = _largest()
    head = ["metric", *(f"{size} seeds" for size in SEEDS), *(f"{size}, corrected for {largest}" for size in SEEDS)]
    rows = []
    for at, (which, score) in enumerate(METRICS):
        cells = [narrowest(_spread(blocks, at), size, alpha=ALPHA / by) for by in (1, largest) for size in SEEDS]
        rows.append([f"{results.label(score)} {which}", *(f"{100 * cell:.1f}" for cell in cells)])
    return markdown_table(head, rows)


def _largest() -> int:
    """The number of claims of the sweep that tests most."""
    tested = (claim.sweep for claim in published().claims if claim.sweep and claim.kind not in UNTESTED)
    return max(Counter(tested).values())


def _spread(blocks: Sequence[Blocks], metric: int) -> float:
    """The standard deviation from run to run, from that of the differences of blocks: it holds what evaluation adds."""
    return float(np.sqrt(np.mean([one.size * one.differences[:, metric].var() / 2 for one in blocks])))


def _spread_table(results: Results, runs: Sequence[str]) -> str:
    """The variance of a run's last mean@k: of k answers drawn again on the same problems, and the rest."""
    head = ["mean@k last", "points"]
    cubes = [
        results.scores.cube(runs, results.steps, benchmark, results.scores.problems[runs[0], benchmark])
        for benchmark in results.benchmarks
    ]
    row = MEASURES.index(("last", "mean"))
    scores = np.mean([cube[row].mean(axis=1) for cube in cubes], axis=0)
    noise = np.sum(
        [
            (cube[row] * (1 - cube[row])).mean() / (max(results.k, 2) - 1) / cube.shape[2] / len(cubes) ** 2
            for cube in cubes
        ]
    )
    rows = [
        ["standard deviation over seeds", f"{100 * scores.std(ddof=1):.2f}"],
        ["of which one evaluation's draws", f"{100 * noise**0.5:.2f}"],
        ["the rest, from run to run", f"{100 * max(scores.var(ddof=1) - noise, 0.0) ** 0.5:.2f}"],
    ]
    return markdown_table(head, rows)


def _paired(one: Blocks) -> str:
    return "paired" if one.paired else "unpaired"


def main(argv: Sequence[str]) -> int:
    """Prints the tables; returns the exit status."""
    return command.run(argv, __doc__, Arguments, calibrate)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
