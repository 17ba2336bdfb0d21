"""Every figure of the report, in the order of the page."""

from collections.abc import Mapping

from analysis.costs import Cost
from analysis.figures.curves import (
    ensemble_panels,
    learning_curves,
    learning_panels,
    stability_panels,
    training_curves,
    training_panels,
)
from analysis.figures.explorer import explorer
from analysis.figures.panel import Panel, looks
from analysis.figures.ratios import ratios
from analysis.figures.scores import cost, differences, divergence_bars, seeds
from analysis.results import Results


def panels(
    results: Results, *, members: Mapping[str, list[str]], costs: Mapping[str, Cost], alpha: float
) -> list[Panel]:
    """The figures that there are numbers for.

    Args:
        results: what the records come to.
        members: topic → its arms (`topics.members`); a figure of a comparison that was not run is left out.
        costs: arm → its cost.
        alpha: the weight of the newest value in the moving averages.
    """
    drawn = looks(results.arms, members)
    learning = learning_curves(results, drawn, alpha=alpha)
    training = training_curves(results, drawn, alpha=alpha)
    scored = bool(len(results.by_step))
    found = [
        *(stability_panels(results, learning, training) if "stability" in members else []),
        explorer(results, members),
        ratios(results),
        *([divergence_bars(results, drawn)] if "divergence" in members else []),
        *(ensemble_panels(results, learning) if "ensemble" in members else []),
        *([differences(results, drawn, score) for score in ("mean", "best")] if len(results.differences) else []),
        *([cost(results, drawn, costs), seeds(results, drawn)] if scored else []),
        *learning_panels(results, learning),
        *training_panels(training),
    ]
    return [panel for panel in found if panel and panel.traces]
