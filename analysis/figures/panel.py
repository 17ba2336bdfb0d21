"""What a figure is made of, as plotly takes it, and how an arm looks in all of them.

Each trace says in its `meta` which arm, benchmark, smoothing or other choice it belongs to: the page shows those that
its reader chose, in the colours of the reader's theme. A trace without an arm is always shown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.arms import Arm
from analysis.text import plot_label

# Told apart under protanopia, deuteranopia and tritanopia and at 3:1 or more against the page, as
# `tests/unit/analysis/test_figures.py` measures. With each goes a marker; further arms repeat them with another dash.
LIGHT = ("#3f4ed1", "#bb7a05", "#36a291", "#ad167a", "#b176f3", "#774002")
DARK = ("#89b0f1", "#edd217", "#59eec7", "#ae6685", "#7766f1", "#ff6a0c")
TEACHER_LIGHT, TEACHER_DARK = "#6b6a66", "#a3a29c"
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
DASHES = ("solid", "dash", "dot", "dashdot")
DIFFERENT = len(LIGHT) * len(DASHES)

Trace = dict[str, Any]


@dataclass(frozen=True)
class Control:
    """A choice that a reader makes in one figure: traces whose `meta` has another value under `key` are not shown."""

    key: str
    label: str
    options: tuple[tuple[str, str], ...]  # value, label; the first is chosen at first


@dataclass(frozen=True)
class Panel:
    """One figure with its place in the page. `plotly.graph_objects.Figure(traces, layout)` is the figure itself.

    Attributes:
        topic: the comparison whose arms alone it shows; None for those that the reader chose.
        titles: value of a control → the title of the y axis under it.
        tall: one row an arm: its height follows from how many there are.
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
class Look:
    """How an arm is drawn: place in the palette (None: a teacher's grey), marker and dash."""

    slot: int | None
    marker: str
    dash: str


Looks = Mapping[str, Look]


def looks(arms: Sequence[Arm], members: Mapping[str, list[str]]) -> Looks:
    """Arm → its look, the same in all figures.

    `members` is topic → its arms. There are `DIFFERENT` looks; where there are more arms, those of one comparison still
    look different, and the baseline like no other of any.
    """
    students = [arm for arm in arms if arm.role != "teacher"]
    drawn = {arm.id: look(position) for position, arm in enumerate(students)}
    if len(students) > DIFFERENT:
        positions: dict[str, int] = {}
        for arm in students:
            beside = {other for own in members.values() if arm.id in own for other in own}
            taken = {positions[other] for other in beside if other in positions}
            free = (position for position in range(len(students)) if position not in taken)
            positions[arm.id] = next(free) if beside else len(positions)
        drawn = {arm: look(position) for arm, position in positions.items()}
    for position, arm in enumerate(arm for arm in arms if arm.role == "teacher"):
        drawn[arm.id] = Look(None, "circle", DASHES[1 + position % 3])
    return drawn


def look(position: int) -> Look:
    """That of the student at this place; `DIFFERENT` are different."""
    turn, slot = divmod(position, len(LIGHT))
    return Look(slot, MARKERS[slot], DASHES[turn % len(DASHES)])


def line(
    label: str,
    look: Look,
    x: np.ndarray,
    y: np.ndarray,
    mode: str,
    unit: str,
    meta: dict[str, Any],
    *,
    faint: bool,
) -> Trace:
    """A curve over steps. A faint one is a single seed's, or the points behind a smoothed curve."""
    trace = {
        "type": "scatter",
        "x": [int(step) for step in x],
        "y": [rounded(value) for value in y],
        "name": plot_label(label),
        "mode": mode,
        "opacity": 0.35 if faint else 1,
        "line": {"color": colour(look), "width": 1 if faint else 2.25, "dash": look.dash},
        "marker": {"symbol": look.marker, "size": 6, "color": colour(look)},
        "meta": {**meta, "slot": look.slot, **({"faint": True} if faint else {})},
    }
    if faint:
        return {**trace, "hoverinfo": "skip"}
    return {**trace, "hovertemplate": f"step %{{x}}: %{{y}}{unit}<extra>%{{fullData.name}}</extra>"}


def error_bar(look: Look, value: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    """From `low` to `high`; a missing end is not drawn."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if high is None or value is None else rounded(high - value)],
        "arrayminus": [None if low is None or value is None else rounded(value - low)],
        "color": colour(look),
        "thickness": 2,
        "width": 0,
    }


def layout(*, x: str, y: str, **axes: dict[str, Any]) -> dict[str, Any]:
    """What all figures share, with the titles of the axes and what is particular to one."""
    common = {"zeroline": False, "automargin": True}
    return {
        "template": "none",
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 44, "r": 12, "t": 16, "b": 40},
        "xaxis": {**common, "title": {"text": x, "standoff": 8}, **axes.get("xaxis", {})},
        "yaxis": {**common, "title": {"text": y, "standoff": 4}, **axes.get("yaxis", {})},
        **({"yaxis2": {**common, **axes["yaxis2"]}} if "yaxis2" in axes else {}),
    }


def rows_layout(x: str, **xaxis: Any) -> dict[str, Any]:
    """Arms under each other, the first on top."""
    yaxis = {"autorange": "reversed", "type": "category", "showgrid": False}
    return layout(x=x, y="", xaxis=xaxis, yaxis=yaxis)


def colour(look: Look) -> str:
    """On paper and on a light page."""
    return TEACHER_LIGHT if look.slot is None else LIGHT[look.slot]


def short(label: str) -> str:
    """A label as an axis has room for it."""
    return label if len(label) <= 28 else label[:27] + "…"


def rounded(value: float) -> float | None:
    """Four digits are more than a figure shows. None, which JSON can write, for a missing value."""
    return None if math.isnan(value) else float(f"{value:.4g}")


def thin(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` of the points, evenly spread, with the first and the last."""
    if len(x) <= points:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
    return x[kept], y[kept]
