"""The arms ranked by their scores, each with the interval of its rank."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.arms import Arm
from analysis.comparison import ProblemScores
from analysis.contrasts import LEVEL, Bootstrap
from analysis.outcomes import MEASURES, Steps
from analysis.stats.bootstrap import resampled_means
from analysis.stats.comparisons import ranks

_COLUMNS = ["arm", "score", "which", "rank", "low", "high", "best"]
_RANKED = (("last", "mean"), ("max", "mean"))


def ranking(arms: Sequence[Arm], scores: ProblemScores, steps: Steps, bootstrap: Bootstrap) -> pd.DataFrame:
    """The counted arms by mean@k, last and max, averaged over benchmarks, without teachers and arms evaluated on
    other problems than the first.

    Columns: `arm`, `score`, `which`, `rank` (1 is best), `low` and `high` (95 % of resamples), `best` (the share of
    resamples in which it is best). With one seed an arm the ranks say nothing about how seeds differ.
    """
    counted = [arm for arm in arms if arm.counted and arm.role != "teacher"]
    problems_of = {arm.id: scores.asked(arm.used) for arm in counted}
    alike = [arm for arm in counted if problems_of[arm.id] and problems_of[arm.id] == problems_of[counted[0].id]]
    if len(alike) < 2:
        return pd.DataFrame(columns=_COLUMNS)
    measured = [MEASURES.index(measure) for measure in _RANKED]
    benchmarks = list(problems_of[alike[0].id] or ())
    values, draws = np.zeros((2, len(alike))), np.zeros((2, bootstrap.count, len(alike)))
    for benchmark in benchmarks:
        problems = scores.problems[alike[0].used[0], benchmark]
        weights = bootstrap.weights(f"problems of {benchmark}", len(problems))
        for at, arm in enumerate(alike):
            cube = scores.cube(arm.used, steps, benchmark, problems)[measured]
            seeds = bootstrap.weights(f"seeds of {arm.id}", len(arm.seeds))
            values[:, at] += cube.mean(axis=(1, 2)) / len(benchmarks)
            draws[:, :, at] += resampled_means(cube, seeds=seeds, problems=weights).T / len(benchmarks)
    rows = []
    for (which, score), value, drawn in zip(_RANKED, values.round(12), draws.round(12), strict=True):
        known = np.flatnonzero(~np.isnan(value))
        if not len(known):  # damaged evaluations hide every best score
            continue
        ranked = ranks(value[known], drawn[:, known], level=LEVEL)
        columns = (ranked.rank, ranked.low, ranked.high, ranked.best)
        rows += [(alike[at].id, score, which, *map(float, row)) for at, *row in zip(known, *columns, strict=True)]
    return pd.DataFrame(rows, columns=_COLUMNS).sort_values(["which", "rank", "arm"], ignore_index=True)
