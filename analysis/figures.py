"""The report's figures, as plotly takes them. Each trace says in its `meta` which arm, benchmark and smoothing it
belongs to: the page shows those that its reader chose, in the colours of the reader's theme.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.arms import Arm
from analysis.results import Results, rows_of
from analysis.stats.smoothing import ema
from analysis.text import plot_label

# Told apart under protanopia, deuteranopia and tritanopia and at 3:1 or more against the page, as
# `tests/unit/analysis/test_figures.py` measures. With each goes a marker; further arms repeat them with another dash.
LIGHT = ("#3f4ed1", "#bb7a05", "#36a291", "#ad167a", "#b176f3", "#774002")
DARK = ("#89b0f1", "#edd217", "#59eec7", "#ae6685", "#7766f1", "#ff6a0c")
TEACHER_LIGHT, TEACHER_DARK = "#6b6a66", "#a3a29c"
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
DASHES = ("solid", "dash", "dot", "dashdot")

Trace = dict[str, Any]
POINTS_PER_FIGURE, POINTS_PER_TRACE = 20_000, 200
TRAINING = {
    "divergence/reverse_kl": ("Divergence", "Sampled reverse KL to the teacher, nats a token"),
    "entropy/student": ("Entropy", "Student's entropy, nats a token"),
    "grad_norm": ("Gradient norm", "Before clipping"),
    "filter/kept": ("Kept by the filter", "Share of response tokens, %"),
    "rollout_correction/masked": ("Masked by the rollout correction", "Share of response tokens, %"),
    "rollout_correction/log_ppl_drift": ("Drift", "Log of the learner's perplexity over the sampler's"),
    "response/length": ("Response length", "Mean over the batch, tokens"),
    "response/truncated": ("Truncated responses", "Share of the batch, %"),
}
PERCENT = {"filter/kept", "rollout_correction/masked", "response/truncated"}


@dataclass(frozen=True)
class Panel:
    """One figure with its place in the page. `plotly.graph_objects.Figure(traces, layout)` is the figure itself."""

    id: str
    group: str
    title: str
    note: str
    traces: list[Trace]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Look:
    """How an arm is drawn: place in the palette (None: a teacher's grey), marker and dash."""

    slot: int | None
    marker: str
    dash: str


def looks(arms: Sequence[Arm]) -> dict[str, Look]:
    """Arm → its look, the same in all figures."""
    drawn: dict[str, Look] = {}
    students = [arm for arm in arms if arm.role != "teacher"]
    for position, arm in enumerate(students):
        turn, slot = divmod(position, len(LIGHT))
        drawn[arm.id] = Look(slot, MARKERS[slot], DASHES[turn % len(DASHES)])
    for position, arm in enumerate(arm for arm in arms if arm.role == "teacher"):
        drawn[arm.id] = Look(None, "circle", DASHES[1 + position % 3])
    return drawn


def panels(results: Results, *, alpha: float) -> list[Panel]:
    """The figures that there are numbers for. `alpha` is the weight of the newest value in the moving average."""
    drawn = looks(results.arms)
    found = [_learning(results, score, drawn, alpha) for score in ("mean", "best")] if len(results.by_step) else []
    found += [_differences(results, score, drawn) for score in ("mean", "best")] if len(results.differences) else []
    found += [
        _training(results, name, drawn, alpha) for name in TRAINING if results.records.training[name].notna().any()
    ]
    return found


def _learning(results: Results, score: str, drawn: dict[str, Look], alpha: float) -> Panel:
    traces: list[Trace] = []
    last_step = int(results.by_step["step"].max())
    for benchmark, rows in results.by_step.groupby("benchmark"):
        by_run = rows.pivot(index="step", columns="run", values=score) * 100
        for arm in results.arms:
            look, own = drawn[arm.id], {"arm": arm.id, "benchmark": str(benchmark)}
            values = by_run[[run for run in arm.used if run in by_run]].dropna(how="all")
            if arm.role == "teacher" and len(values):
                traces.append(_reference(arm, look, float(values.iloc[-1].mean()), last_step, own))
            if arm.role == "teacher":
                continue
            raw, smooth = {**own, "smooth": False}, {**own, "smooth": True}
            for seed, curve in _curves(values):
                y, x = curve.to_numpy(), curve.index.to_numpy()
                smoothed = ema(y, alpha=alpha)
                traces.append(_line(arm, look, x, y, "lines" if seed else "lines+markers", " %", raw, faint=seed))
                traces.append(_line(arm, look, x, smoothed, "lines", " %", smooth, faint=seed))
                if not seed:
                    traces.append(_line(arm, look, x, y, "markers", " %", smooth, faint=True))
    note = {"mean": "Answers that are right", "best": "Problems with any right answer"}[score]
    layout = _layout(x="step", y="%", yaxis={"rangemode": "tozero"})
    return Panel(f"learning-{score}", "learning", results.label(score), note, traces, layout)


def _training(results: Results, name: str, drawn: dict[str, Look], alpha: float) -> Panel:
    title, note = TRAINING[name]
    by_run = results.records.training.pivot(index="step", columns="run", values=name)
    by_run *= 100 if name in PERCENT else 1
    curves = []
    for arm in results.arms:
        values = by_run[[run for run in arm.used or arm.runs if run in by_run]]
        curves += [(arm, seed, curve) for seed, curve in _curves(values)]
    points = max(20, min(POINTS_PER_TRACE, POINTS_PER_FIGURE // max(1, len(curves))))
    unit = " %" if name in PERCENT else ""
    traces = []
    for arm, seed, curve in curves:
        x, y = thin(curve.index.to_numpy(), ema(curve.to_numpy(), alpha=alpha), points)
        traces.append(_line(arm, drawn[arm.id], x, y, "lines", unit, {"arm": arm.id}, faint=seed))
    layout = _layout(x="step", y="%" if name in PERCENT else "")
    return Panel(name.replace("/", "-").replace("_", "-"), "training", title, note, traces, layout)


def _differences(results: Results, score: str, drawn: dict[str, Look]) -> Panel:
    frame, traces = results.differences, []
    shown = frame[(frame["score"] == score) & (frame["which"] == "last")]
    for arm in results.arms:
        for row in rows_of(shown[shown["arm"] == arm.id]):
            value, low, high = (_round(100 * row[number]) for number in ("value", "low", "high"))
            look = drawn[arm.id]
            interval = f"<br>95 %: {low:+.1f} to {high:+.1f}" if low is not None and high is not None else ""
            traces.append(
                {
                    "type": "scatter",
                    "x": [value],
                    "y": [plot_label(_short(arm.label))],
                    "name": plot_label(arm.label),
                    "mode": "markers",
                    "marker": {"symbol": look.marker, "size": 10, "color": _colour(look)},
                    "error_x": {
                        "type": "data",
                        "symmetric": False,
                        "array": [None if high is None or value is None else high - value],
                        "arrayminus": [None if low is None or value is None else value - low],
                        "color": _colour(look),
                        "thickness": 2,
                        "width": 0,
                    },
                    "hovertemplate": f"%{{x:+.1f}} points{interval}<extra>%{{fullData.name}}</extra>",
                    "meta": {"arm": arm.id, "benchmark": row["benchmark"], "slot": look.slot},
                }
            )
    layout = _layout(
        x="points",
        y="",
        xaxis={"zeroline": True, "autorangeoptions": {"include": [-1, 1]}},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False},
    )
    baseline = results.baseline.label if results.baseline else ""
    note = f"Minus {baseline} at the last step, with 95 % intervals"
    return Panel(f"difference-{score}", "differences", f"Δ {results.label(score)}", note, traces, layout)


# ---- parts


def thin(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` of the points, evenly spread, with the first and the last."""
    if len(x) <= points:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
    return x[kept], y[kept]


def _curves(values: pd.DataFrame) -> list[tuple[bool, pd.Series]]:
    """(is one seed of several, curve): the the mean over seeds where all have a value, then each of several."""
    mean = values.mean(axis=1, skipna=False).dropna()
    seeds = [values[run].dropna() for run in values.columns] if values.shape[1] > 1 else []
    return [(seed, curve) for seed, curve in [(False, mean), *((True, curve) for curve in seeds)] if len(curve)]


def _line(
    arm: Arm, look: Look, x: np.ndarray, y: np.ndarray, mode: str, unit: str, meta: dict[str, Any], *, faint: bool
) -> Trace:
    trace = {
        "type": "scatter",
        "x": [int(step) for step in x],
        "y": [_round(value) for value in y],
        "name": plot_label(arm.label),
        "mode": mode,
        "opacity": 0.35 if faint else 1,
        "line": {"color": _colour(look), "width": 1 if faint else 2.25, "dash": look.dash},
        "marker": {"symbol": look.marker, "size": 6, "color": _colour(look)},
        "meta": {**meta, "slot": look.slot},
    }
    if faint:
        return {**trace, "hoverinfo": "skip"}
    return {**trace, "hovertemplate": f"step %{{x}}: %{{y}}{unit}<extra>%{{fullData.name}}</extra>"}


def _reference(arm: Arm, look: Look, value: float, last_step: int, meta: dict[str, Any]) -> Trace:
    return {
        "type": "scatter",
        "x": [0, last_step],
        "y": [_round(value)] * 2,
        "name": plot_label(arm.label),
        "mode": "lines+text",
        "text": [f"{plot_label(_short(arm.label))} {value:.1f}", ""],
        "textposition": "top right",
        "cliponaxis": False,
        "line": {"color": _colour(look), "width": 1.5, "dash": look.dash},
        "hovertemplate": "%{y} %<extra>%{fullData.name}</extra>",
        "meta": {**meta, "slot": look.slot},
    }


def _layout(*, x: str, y: str, **axes: dict[str, Any]) -> dict[str, Any]:
    common = {"zeroline": False, "automargin": True}
    return {
        "template": "none",
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 44, "r": 12, "t": 16, "b": 40},
        "xaxis": {**common, "title": {"text": x, "standoff": 8}, **axes.get("xaxis", {})},
        "yaxis": {**common, "title": {"text": y, "standoff": 4}, **axes.get("yaxis", {})},
    }


def _colour(look: Look) -> str:
    return TEACHER_LIGHT if look.slot is None else LIGHT[look.slot]


def _short(label: str) -> str:
    return label if len(label) <= 28 else label[:27] + "…"


def _round(value: float) -> float | None:
    """Four digits are more than a figure shows. None, which JSON can write, for a missing value."""
    return None if math.isnan(value) else float(f"{value:.4g}")
