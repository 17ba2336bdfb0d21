"""Figure 3 of the adventures post: one hyper-parameter at a time, every benchmark."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.arms import Arm
from analysis.evaluation import AVERAGE
from analysis.figures.panel import Control, Panel, colour, error_bar, layout, look, rounded
from analysis.figures.scores import WHICH, score_control
from analysis.results import Results
from analysis.text import plot_label, printable
from analysis.topics import TOPICS, Topic


def axes(results: Results, members: Mapping[str, list[str]]) -> list[tuple[Topic, list[tuple[str, Arm]]]]:
    """Each axis that was moved, with (its value as text, the arm), in order of the values."""
    arms = {arm.id: arm for arm in results.arms}
    found = []
    for topic in TOPICS:
        if topic.axis and topic.name in members:
            values = [(results.records.details[arm].config.get(topic.axis), arms[arm]) for arm in members[topic.name]]
            if all(type(value) in (int, float) for value, _ in values):
                values.sort(key=lambda value: float(value[0] or 0))
            found.append((topic, [(shown(value), arm) for value, arm in values]))
    return found


def shown(value: Any) -> str:
    """A value of a config in a word: a list's items, a model's name without its owner."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(shown(item) for item in value)
    return printable(str(value).rpartition("/")[2], limit=40)


def explorer(results: Results, members: Mapping[str, list[str]]) -> Panel:
    """Score at each value of the chosen hyper-parameter, the others as in the baseline."""
    traces, moved = [], axes(results, members)
    benchmarks = [AVERAGE, *results.benchmarks] if results.benchmarks[1:] else results.benchmarks
    for topic, values in moved:
        for place, benchmark in enumerate(benchmarks):
            how = look(place)
            points: dict[tuple[str, str], list[tuple[str, Arm, dict[str, Any]]]] = {}
            for text, arm in values:
                for row in results.estimated.get((arm.id, benchmark), ()):
                    if row["score"] in ("mean", "best") and not math.isnan(row["value"]):
                        points.setdefault((row["score"], row["which"]), []).append((text, arm, row))
            for (score, which), found in points.items():
                bars = [
                    error_bar(how, *(100 * row[number] if not math.isnan(row[number]) else None for number in _ENDS))
                    for _, _, row in found
                ]
                ends = {end: [bar[end][0] for bar in bars] for end in ("array", "arrayminus")}
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers",
                        "x": [plot_label(text) for text, _, _ in found],
                        "y": [rounded(100 * row["value"]) for _, _, row in found],
                        "name": plot_label(benchmark),
                        "line": {"color": colour(how), "width": 2.25 if not place else 1.25, "dash": how.dash},
                        "marker": {"symbol": how.marker, "size": 8, "color": colour(how)},
                        "error_y": {**error_bar(how, None, None, None), **ends},
                        "hovertemplate": "%{x}: %{y:.1f} %<extra>%{fullData.name}</extra>",
                        "meta": {
                            "arms": [arm.id for _, arm, _ in found],
                            "slot": how.slot,
                            "axis": topic.name,
                            "score": score,
                            "which": which,
                        },
                    }
                )
    return Panel(
        "explorer",
        "explorer",
        "Hyper-parameters, one at a time",
        "All else as in the default, with 95 % intervals",
        traces,
        {**layout(x="", y="%", xaxis={"type": "category"}), "showlegend": len(benchmarks) > 1},
        (
            Control("axis", "Hyper-parameter", tuple((topic.name, topic.title) for topic, _ in moved)),
            score_control(results),
            Control("which", "At", WHICH.options[::-1]),
        ),
    )


_ENDS = ("value", "low", "high")
