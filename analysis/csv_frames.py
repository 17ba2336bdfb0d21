"""The numbers behind tables and figures, one row a number or a step, for use in other tools."""

import numpy as np
import pandas as pd

from analysis.evaluation import SCORES
from analysis.outcomes import SHARES
from analysis.results import Results
from analysis.stats.curves import ema


def csv_frames(results: Results, *, alpha: float) -> dict[str, pd.DataFrame]:
    """Name → frame. Scores are in percent, differences in points, as in the tables."""
    labels = {arm.id: arm.label for arm in results.arms}

    def long(frame: pd.DataFrame) -> pd.DataFrame:
        """With labels, and without intervals of scores that are not known problem by problem."""
        hidden = [column for column in ("low", "high", "p", "p_holm", "p_bh") if column in frame]
        averaged = frame["score"].isin(results.records.averaged)
        known = {column: frame[column].mask(averaged) for column in hidden}
        return _percent(frame.assign(**known)).assign(label=frame["arm"].map(labels))

    return {
        "scores_long": long(results.estimates),
        "differences_long": long(results.differences),
        "runs_long": _percent(results.outcomes),
        "learning_curves": _learning_curves(results, alpha),
        "training": results.records.training,
        "ranking_long": results.ranking,
        "steadiness": results.steadiness,
    }


def _percent(frame: pd.DataFrame) -> pd.DataFrame:
    factor = np.where(frame["score"].isin(SHARES), 100.0, 1.0)
    numbers = [column for column in ("value", "low", "high", "iqm") if column in frame]
    return frame.assign(**{column: frame[column].astype(float) * factor for column in numbers})


def _learning_curves(results: Results, alpha: float) -> pd.DataFrame:
    """Every run's score at every evaluated step, and mean@k and best@k smoothed."""
    frame = results.by_step.assign(**{share: results.by_step[share] * 100 for share in SHARES})
    for score in ("mean", "best"):
        curves = frame.groupby(["run", "benchmark"])[score]
        frame[f"{score}_smoothed"] = curves.transform(lambda curve: ema(curve.to_numpy(), alpha=alpha))
    columns = ["run", "benchmark", "step", "k", "problems", *SCORES, "mean_smoothed", "best_smoothed"]
    return frame.sort_values(by=["run", "benchmark", "step"]).loc[:, columns]
