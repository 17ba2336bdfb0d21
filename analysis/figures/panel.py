"""A figure as plotly data, and the style that an arm has in every figure.

The `meta` of a trace names the arm, benchmark, smoothing or other choice that it belongs to. The page shows the traces
that match the selected options, in the colours of the reader's theme; a trace without an arm is always shown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.arms import Arm
from analysis.text import plot_label

# Distinguishable under protanopia, deuteranopia and tritanopia, with a contrast of 3:1 or more against the page, as
# `tests/unit/analysis/test_figures.py` measures. Each goes with a marker; further arms repeat them with another dash.
LIGHT = ("#3f4ed1", "#bb7a05", "#36a291", "#ad167a", "#b176f3", "#774002")
DARK = ("#89b0f1", "#edd217", "#59eec7", "#ae6685", "#7766f1", "#ff6a0c")
TEACHER_LIGHT, TEACHER_DARK = "#6b6a66", "#a3a29c"
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
DASHES = ("solid", "dash", "dot", "dashdot")
NUM_STYLES = len(LIGHT) * len(DASHES)

SHARE = {"clipmin": 0, "clipmax": 100}  # of an axis in percent, also where all values are the same

Trace = dict[str, Any]


@dataclass(frozen=True)
class Control:
    """A choice within one figure: traces whose `meta` has another value under `key` are hidden."""

    key: str
    label: str
    options: tuple[tuple[str, str], ...]  # value and label; the first is the default


@dataclass(frozen=True)
class Panel:
    """One figure of the page; `plotly.graph_objects.Figure(traces, layout)` draws it.

    Attributes:
        group: its section of the page.
        topic: the comparison whose arms it shows; None for the selected arms.
        titles: value of a control → title of the y axis under it.
        tall: one row an arm, so that its height depends on the number of arms.
    """

    id: str
    group: str
    title: str
    note: str
    traces: list[Trace]
    layout: dict[str, Any]
    controls: tuple[Control, ...] = ()
    topic: str | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    tall: bool = False


@dataclass(frozen=True)
class Style:
    """How an arm is drawn: index into the palette (None: the teachers' grey), marker and dash."""

    slot: int | None
    marker: str = "circle"
    dash: str = "solid"

    @property
    def color(self) -> str:
        """On paper and on a light page."""
        return TEACHER_LIGHT if self.slot is None else LIGHT[self.slot]


GREY = Style(None)
Styles = Mapping[str, Style]


def arm_styles(arms: Sequence[Arm], members: Mapping[str, list[str]]) -> Styles:
    """Arm → its style, the same in all figures.

    Where there are more than `NUM_STYLES` arms, those of one comparison (`members`: topic → its arms) still differ, and
    the baseline shares its style with no arm of any comparison.
    """
    students = [arm for arm in arms if arm.role != "teacher"]
    positions = {arm.id: position for position, arm in enumerate(students)}
    if len(students) > NUM_STYLES:
        positions = {}
        for arm in students:
            related = {other for own in members.values() if arm.id in own for other in own}
            taken = {positions[other] for other in related if other in positions}
            free = (position for position in range(len(students)) if position not in taken)
            positions[arm.id] = next(free) if related else len(positions)
    styles = {arm: style(position) for arm, position in positions.items()}
    for position, arm in enumerate(arm for arm in arms if arm.role == "teacher"):
        styles[arm.id] = Style(None, dash=DASHES[1 + position % 3])
    return styles


def style(position: int) -> Style:
    """The style of the student at this position; `NUM_STYLES` of them differ."""
    turn, slot = divmod(position, len(LIGHT))
    return Style(slot, MARKERS[slot], DASHES[turn % len(DASHES)])


def scatter(
    label: str,
    style: Style,
    x: list,
    y: list,
    meta: Mapping[str, Any],
    *,
    hover: str | None = None,
    mode: str | None = "markers",
    **more: Any,
) -> Trace:
    """A trace in a style. `hover` is its hover text; `more` adds keys to the trace, replaces or (None) removes them."""
    trace = {
        "type": "scatter",
        "mode": mode,
        "x": x,
        "y": y,
        "name": plot_label(label),
        "line": {"color": style.color, "width": 2.25, "dash": style.dash},
        "marker": {"symbol": style.marker, "size": 10, "color": style.color},
        "hovertemplate": None if hover is None else f"{hover}<extra>%{{fullData.name}}</extra>",
        "hoverinfo": "skip" if hover is None else None,
        "meta": {**meta, "slot": style.slot},
        **more,
    }
    return {key: value for key, value in trace.items() if value is not None}


def curve(
    label: str,
    style: Style,
    x: np.ndarray,
    y: np.ndarray,
    mode: str,
    unit: str,
    meta: Mapping[str, Any],
    *,
    faint: bool,
) -> Trace:
    """A curve over steps. A faint one is that of a single seed, or the points behind a smoothed curve."""
    return scatter(
        label,
        style,
        [int(step) for step in x],
        [rounded(value) for value in y],
        {**meta, "faint": True} if faint else meta,
        hover=None if faint else f"step %{{x}}: %{{y}}{unit}",
        mode=mode,
        opacity=0.35 if faint else 1,
        line={"color": style.color, "width": 1 if faint else 2.25, "dash": style.dash},
        marker={"symbol": style.marker, "size": 6, "color": style.color},
    )


def error_bars(style: Style, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Error bars in percent from the `value`, `low` and `high` of each row of estimates; a missing end is not drawn."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [rounded(100 * (row["high"] - row["value"])) for row in rows],
        "arrayminus": [rounded(100 * (row["value"] - row["low"])) for row in rows],
        "color": style.color,
        "thickness": 2,
        "width": 0,
    }


def layout(*, x: str, y: str, **axes: dict[str, Any]) -> dict[str, Any]:
    """The layout that all figures share, with the titles of the axes and what is particular to one."""
    common = {"zeroline": False, "automargin": True}

    def axis(title: str) -> dict[str, Any]:
        return {**common, "autorangeoptions": SHARE} if title == "%" else common

    return {
        "template": "none",
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 44, "r": 12, "t": 16, "b": 40},
        "xaxis": {**axis(x), "title": {"text": x, "standoff": 8}, **axes.get("xaxis", {})},
        "yaxis": {**axis(y), "title": {"text": y, "standoff": 4}, **axes.get("yaxis", {})},
        **({"yaxis2": {**common, **axes["yaxis2"]}} if "yaxis2" in axes else {}),
    }


def rows_layout(x: str, **xaxis: Any) -> dict[str, Any]:
    """One row an arm, the first on top."""
    yaxis = {"autorange": "reversed", "type": "category", "showgrid": False}
    return layout(x=x, y="", xaxis=xaxis, yaxis=yaxis)


def short(label: str) -> str:
    """A label that fits beside an axis; what is cut out is its middle, for labels of one name differ at their ends."""
    return label if len(label) <= 28 else f"{label[:9]}…{label[-18:]}"


def rounded(value: float) -> float | None:
    """To four significant digits; None, which JSON can write, for NaN."""
    return None if math.isnan(value) else float(f"{value:.4g}")


def percent(row: Mapping[str, Any]) -> float | None:
    """The value of a row of estimates, in percent."""
    return rounded(100 * row["value"])


def thin(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` of the points, evenly spaced, including the first and the last."""
    if len(x) <= points:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
    return x[kept], y[kept]
