"""Figure 3 of the adventures post: one hyper-parameter at a time, on every benchmark."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.arms import Arm
from analysis.evaluation import AVERAGE
from analysis.figures.panel import Control, Panel, error_bars, layout, percent, scatter, style
from analysis.figures.scores import WHICH_BEST_FIRST, score_control
from analysis.results import Results
from analysis.text import plot_label
from analysis.topics import TOPICS, Topic
from opd.printable import printable


def axes(results: Results, members: Mapping[str, list[str]]) -> list[tuple[Topic, list[tuple[str, Arm]]]]:
    """Each hyper-parameter that was varied, with (its value as text, the arm) in the order of its values."""
    arms = {arm.id: arm for arm in results.arms}
    varied = []
    for topic in TOPICS:
        if topic.axis and topic.name in members:
            values = [(results.records.details[arm].config.get(topic.axis), arms[arm]) for arm in members[topic.name]]
            if all(type(value) in (int, float) for value, _ in values):
                values.sort(key=lambda value: float(value[0] or 0))
            varied.append((topic, [(value_text(value), arm) for value, arm in values]))
    return varied


def value_text(value: Any) -> str:
    """A config value in short: the items of a list, a model's name without its owner."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(value_text(item) for item in value)
    return printable(str(value).rpartition("/")[2], limit=40)


def explorer(results: Results, members: Mapping[str, list[str]]) -> Panel:
    """Score at each value of the chosen hyper-parameter, the others as in the baseline."""
    traces, varied = [], axes(results, members)
    benchmarks = [AVERAGE, *results.benchmarks] if results.benchmarks[1:] else results.benchmarks
    for topic, values in varied:
        for position, benchmark in enumerate(benchmarks):
            own = style(position)
            points: dict[tuple[str, str], list[tuple[str, Arm, dict[str, Any]]]] = {}
            for text, arm in values:
                for row in results.estimated.get((arm.id, benchmark), ()):
                    if row["score"] in ("mean", "best") and not math.isnan(row["value"]):
                        points.setdefault((row["score"], row["which"]), []).append((text, arm, row))
            traces += [
                scatter(
                    benchmark,
                    own,
                    [plot_label(text) for text, _, _ in scored],
                    [percent(row) for _, _, row in scored],
                    {"arms": [arm.id for _, arm, _ in scored], "axis": topic.name, "score": score, "which": which},
                    hover="%{x}: %{y:.1f} %",
                    mode="lines+markers",
                    line={"color": own.color, "width": 1.25 if position else 2.25, "dash": own.dash},
                    error_y=error_bars(own, [row for _, _, row in scored]),
                )
                for (score, which), scored in points.items()
            ]
    return Panel(
        "explorer",
        "explorer",
        "Hyper-parameters, one at a time",
        "The others as in the default, with 95 % intervals",
        traces,
        {**layout(x="", y="%", xaxis={"type": "category"}), "showlegend": len(benchmarks) > 1},
        (
            Control("axis", "Hyper-parameter", tuple((topic.name, topic.title) for topic, _ in varied)),
            score_control(results),
            WHICH_BEST_FIRST,
        ),
    )
