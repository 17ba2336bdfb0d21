"""The analysed records, which tables, figures and the page show."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.arms import Arm, group_arms
from analysis.asked import marked
from analysis.comparison import ProblemScores
from analysis.contrasts import Bootstrap, contrasts, estimates
from analysis.evaluation import AVERAGE
from analysis.load import Records
from analysis.outcomes import Steps, by_step, chosen_steps, outcomes, steadiness
from analysis.ranking import ranking


@dataclass(frozen=True)
class Results:
    """The analysed records. Scores are shares in [0, 1] here; tables and figures show percent.

    Attributes:
        records: the records.
        by_step: every run's scores at every evaluated step (`outcomes.by_step`).
        outcomes: every run's last and best scores (`outcomes.outcomes`).
        arms: the runs grouped by config, in the order in which they are shown.
        estimates: every arm's scores with intervals (`contrasts.estimates`).
        differences: every arm minus the baseline with intervals (`contrasts.contrasts`).
        ranking: the arms ranked by their scores (`ranking.ranking`).
        steadiness: how stable the training of every run was (`outcomes.steadiness`).
        scores, steps: the score of every problem, and the steps at which each run is scored, for further intervals.
        excluded: `run`, `left_out`, `reason`: what was left out in reading and in comparing.
        benchmarks: all benchmarks, sorted.
        k: number of answers a problem; 0 where it differs.
    """

    records: Records
    by_step: pd.DataFrame
    outcomes: pd.DataFrame
    arms: list[Arm]
    estimates: pd.DataFrame
    differences: pd.DataFrame
    ranking: pd.DataFrame
    steadiness: pd.DataFrame
    scores: ProblemScores
    steps: Steps
    excluded: pd.DataFrame
    benchmarks: list[str]
    k: int

    @property
    def baseline(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.role == "baseline"), None)

    @cached_property
    def estimated(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """(arm, benchmark) → its rows of `estimates`."""
        return _by_arm_and_benchmark(self.estimates)

    @cached_property
    def contrasted(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """(arm, benchmark) → its rows of `differences`."""
        return _by_arm_and_benchmark(self.differences)

    @cached_property
    def before(self) -> dict[str, float]:
        """Arm → mean@k before training, averaged over benchmarks and the runs used; only of arms all of whose used runs
        were evaluated at step 0 and later.
        """
        average = self.by_step[self.by_step["benchmark"] == AVERAGE]
        start = average[average["step"] == 0].set_index("run")["mean"].to_dict()
        trained = set(average.loc[average["step"] > 0, "run"])
        return {
            arm.id: sum(start[run] for run in arm.used) / len(arm.used)
            for arm in self.arms
            if arm.used and all(run in start and run in trained for run in arm.used)
        }

    def label(self, score: str) -> str:
        """A score's name with its k, such as mean@8, or mean@k where k differs."""
        k = str(self.k or "k")
        return {
            "mean": f"mean@{k}",
            "best": f"best@{k}",
            "best_resampled": f"best@{k} resampled",
            "maj": f"maj@{k}",
            "truncated": "truncated",
            "length": "length",
        }[score]


def analyse(records: Records, *, baseline: str, bootstrap: Bootstrap) -> Results:
    """Computes scores, arms, intervals and differences."""
    scored = by_step(records)
    steps = chosen_steps(records, scored)
    configs = {arm: details.config for arm, details in records.details.items()}
    evaluated = list(scored["run"].unique())
    arms, no_baseline = group_arms(records.runs, evaluated, baseline=baseline, configs=configs)
    problem_scores = ProblemScores.of(records.scores)
    arms = marked(arms, problem_scores)
    differences, left_out = contrasts(arms, problem_scores, steps)
    if no_baseline and sum(arm.counted for arm in arms) > 1:
        left_out.append(("all runs", "differences", no_baseline))
    excluded = pd.DataFrame(left_out, columns=list(records.excluded.columns))
    ks = set(records.scores["k"])
    return Results(
        records=records,
        by_step=scored,
        outcomes=outcomes(scored, steps),
        arms=arms,
        estimates=estimates(arms, problem_scores, steps),
        differences=differences,
        ranking=ranking(arms, problem_scores, steps, bootstrap),
        steadiness=steadiness(records, scored),
        scores=problem_scores,
        steps=steps,
        excluded=pd.concat([records.excluded, excluded], ignore_index=True),
        benchmarks=sorted(set(scored["benchmark"]) - {AVERAGE}),
        k=int(ks.pop()) if len(ks) == 1 else 0,
    )


def _by_arm_and_benchmark(frame: pd.DataFrame) -> dict[tuple[str, str], list[dict[str, Any]]]:
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows_of(frame):
        rows.setdefault((row["arm"], row["benchmark"]), []).append(row)
    return rows


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as dicts."""
    return frame.to_dict("records")  # pyright: ignore[reportReturnType]
