"""Every figure of the report, in the order of the page."""

from collections.abc import Mapping

from analysis.costs import Cost
from analysis.figures.curves import learning_curves, score_panels, stability_panels, training_curves, training_panels
from analysis.figures.explorer import explorer
from analysis.figures.panel import Panel, arm_styles
from analysis.figures.ratios import ratios
from analysis.figures.scores import cost, differences, divergence_bars, seeds
from analysis.results import Results


def all_panels(
    results: Results, *, members: Mapping[str, list[str]], costs: Mapping[str, Cost], alpha: float
) -> list[Panel]:
    """The figures that there are numbers for.

    Args:
        results: the analysed records.
        members: topic → its arms (`topics.members`); a figure of a comparison that was not run is omitted.
        costs: arm → its cost.
        alpha: the weight of the newest value in the moving averages.
    """
    styles = arm_styles(results.arms, members)
    learning = learning_curves(results, styles, alpha=alpha)
    training = training_curves(results, styles, alpha=alpha)
    panels = [
        *(stability_panels(results, learning, training) if "stability" in members else []),
        explorer(results, members),
        ratios(results),
        *([divergence_bars(results, styles)] if "divergence" in members else []),
        # Figure 8 of the adventures post.
        *(score_panels("ensemble", "{} over training", results, learning, "ensemble") if "ensemble" in members else []),
        *([differences(results, styles, score) for score in ("mean", "best")] if len(results.differences) else []),
        *([cost(results, styles, costs), seeds(results, styles)] if len(results.by_step) else []),
        *score_panels("learning", "{}", results, learning),
        *training_panels(training),
    ]
    return [panel for panel in panels if panel and panel.traces]
