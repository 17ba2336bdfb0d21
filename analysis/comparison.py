"""Signed sums of sets of runs, problem by problem, on which every interval and verdict rests."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pandas as pd

from analysis.arms import Arm
from analysis.evaluation import AVERAGE, SCORES
from analysis.outcomes import MEASURES, Steps
from analysis.stats.intervals import Block, Estimate, block, estimate


@dataclass(frozen=True)
class ProblemScores:
    """`Records.scores` for quick access: (run, benchmark) → its problems, sorted, and k; with the step too, the scores,
    "score problem".
    """

    problems: dict[tuple[str, str], tuple[str, ...]]
    k: dict[tuple[str, str], int]
    values: dict[tuple[str, str, int], np.ndarray]

    @staticmethod
    def of(scores: pd.DataFrame) -> "ProblemScores":
        frame = scores.sort_values(["run", "step", "benchmark", "problem"], ignore_index=True)
        keys = frame[["run", "step", "benchmark"]]
        starts = [*np.flatnonzero((keys != keys.shift()).any(axis=1)), len(frame)]
        names, k, values = frame["problem"].to_numpy(), frame["k"].to_numpy(), frame[list(SCORES)].to_numpy(float).T
        result = ProblemScores({}, {}, {})
        for start, end in pairwise(starts):
            run, step, benchmark = keys.iloc[start]
            result.problems[run, benchmark] = tuple(names[start:end])
            result.k[run, benchmark] = int(k[start])
            result.values[run, benchmark, int(step)] = values[:, start:end]
        return result

    def benchmarks(self, run: str) -> list[str]:
        return self._benchmarks.get(run, [])

    @cached_property
    def _benchmarks(self) -> dict[str, list[str]]:
        benchmarks: dict[str, list[str]] = {}
        for run, benchmark in sorted(self.problems):
            benchmarks.setdefault(run, []).append(benchmark)
        return benchmarks

    def asked(self, runs: Sequence[str]) -> dict[str, tuple[tuple[str, ...], int]] | None:
        """Benchmark → the problems and k that all of the runs share; None where they differ."""
        each = [{name: (self.problems[run, name], self.k[run, name]) for name in self.benchmarks(run)} for run in runs]
        return each[0] if each and all(one == each[0] for one in each) else None

    def same_arms(self, arm: Arm, other: Arm) -> bool:
        """Whether two arms have the same seeds and, seed by seed, the same score on every problem at every step."""
        return arm.seeds == other.seeds and all(self._same(*runs) for runs in zip(arm.used, other.used, strict=True))

    def _same(self, run: str, other: str) -> bool:
        own, theirs = (
            {key[1:]: values for key, values in self.values.items() if key[0] == name} for name in (run, other)
        )
        return (
            bool(own)
            and own.keys() == theirs.keys()
            and all(np.array_equal(values, theirs[key], equal_nan=True) for key, values in own.items())
        )

    def cube(self, runs: Sequence[str], steps: Steps, benchmark: str, problems: Sequence[str]) -> np.ndarray:
        """`MEASURES` of each run on the given problems, "measure run problem"; NaN where a run's step is unknown."""
        cube = np.full((len(MEASURES), len(runs), len(problems)), np.nan)
        for column, run in enumerate(runs):
            own = self.problems[run, benchmark]
            where = slice(None) if own == tuple(problems) else np.searchsorted(own, problems)
            for row, (which, score) in enumerate(MEASURES):
                if (run, which, score) in steps:
                    scores = self.values[run, benchmark, steps[run, which, score]]
                    cube[row, column] = scores[SCORES.index(score), where]
        return cube


@dataclass(frozen=True)
class Side:
    """Runs whose mean score enters a sum with `factor`."""

    factor: float
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A signed sum of sides on one benchmark, or averaged over all that they share (`AVERAGE`).

    Attributes:
        benchmark, k: k is 0 where benchmarks differ in it.
        problems: number of problems.
        estimate: the sum, a value for each of `MEASURES`.
        by_run: of each side, each run's scores, "measure run benchmark".
        cubes: of each side, its scores on this benchmark, "measure run problem"; none for an average of several.
    """

    benchmark: str
    k: int
    problems: int
    estimate: Estimate
    by_run: list[np.ndarray]
    cubes: list[np.ndarray]


def compare(sides: Sequence[Side], scores: ProblemScores, steps: Steps, *, paired: bool = False) -> list[Comparison]:
    """The sum of the sides on the problems that all their runs answered: the average first, then each benchmark.

    A benchmark whose runs differ in k is left out. With `paired` the i-th runs of all sides are one draw, which only
    calibration asks for.
    """
    runs = [run for side in sides for run in side.runs]
    parts: list[tuple[str, int, Block, list[np.ndarray]]] = []
    for benchmark in common([scores.benchmarks(run) for run in runs]):
        problems = common([scores.problems[run, benchmark] for run in runs])
        ks = {scores.k[run, benchmark] for run in runs}
        if not problems or len(ks) > 1:
            continue
        cubes = [scores.cube(side.runs, steps, benchmark, problems) for side in sides]
        signed = [side.factor * cube for side, cube in zip(sides, cubes, strict=True)]
        parts.append((benchmark, ks.pop(), block([np.sum(signed, axis=0)] if paired else signed), cubes))
    if not parts:
        return []
    ks = {k for _, k, *_ in parts}
    by_run = [np.stack([cubes[side].mean(axis=2) for *_, cubes in parts], axis=2) for side in range(len(sides))]
    average = Comparison(
        AVERAGE,
        ks.pop() if len(ks) == 1 else 0,
        sum(part.problems for _, _, part, _ in parts),
        estimate([part for _, _, part, _ in parts]),
        by_run,
        parts[0][3] if len(parts) == 1 else [],
    )
    return [average] + [
        Comparison(name, k, part.problems, estimate([part]), [own[:, :, [at]] for own in by_run], cubes)
        for at, (name, k, part, cubes) in enumerate(parts)
    ]


def common(sets: Sequence[Sequence[str]]) -> Sequence[str]:
    """The sorted elements that all of the sorted sets share."""
    if all(other == sets[0] for other in sets):
        return sets[0] if sets else ()
    return sorted(set.intersection(*map(set, sets)))
