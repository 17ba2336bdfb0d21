"""Scores at the end of training: against the default, against the baseline's, seed by seed, and against their cost."""

import math
from collections.abc import Mapping
from typing import Any

from analysis.arms import Arm
from analysis.costs import COSTS, Cost
from analysis.evaluation import AVERAGE
from analysis.figures.panel import (
    Control,
    Look,
    Looks,
    Panel,
    Trace,
    colour,
    error_bar,
    layout,
    rounded,
    rows_layout,
    short,
)
from analysis.results import Results, rows_of
from analysis.text import plot_label

WHICH = Control("which", "At", (("last", "the last step"), ("max", "the best step")))


def score_control(results: Results) -> Control:
    """Of mean@k or best@k."""
    return Control("score", "Score", tuple((score, results.label(score)) for score in ("mean", "best")))


def differences(results: Results, drawn: Looks, score: str) -> Panel:
    """Each settled arm minus the baseline at the last step."""
    traces: list[Trace] = []
    frame = results.differences
    shown = frame[(frame["score"] == score) & (frame["which"] == "last")]
    for arm in results.arms:
        for row in rows_of(shown[shown["arm"] == arm.id]):
            value, low, high = (rounded(100 * row[number]) for number in ("value", "low", "high"))
            interval = f"<br>95 %: {low:+.1f} to {high:+.1f}" if low is not None and high is not None else ""
            trace = _point(arm, drawn[arm.id], value, low, high, {"benchmark": row["benchmark"]})
            traces.append({**trace, "hovertemplate": f"%{{x:+.1f}} points{interval}<extra>%{{fullData.name}}</extra>"})
    baseline = results.baseline.label if results.baseline else ""
    return Panel(
        f"difference-{score}",
        "differences",
        f"Δ {results.label(score)}",
        f"Minus {baseline} at the last step, with 95 % intervals",
        traces,
        rows_layout("points", zeroline=True, autorangeoptions={"include": [-1, 1]}),
        tall=True,
    )


def divergence_bars(results: Results, drawn: Looks) -> Panel:
    """Figure 6 of the adventures post: the divergences' scores, the default's as a dashed line."""
    traces: list[Trace] = []
    for arm, row, meta in _estimated(results):
        value, low, high = (rounded(100 * row[number]) for number in ("value", "low", "high"))
        look = drawn[arm.id]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "x": [value],
                "y": [plot_label(short(arm.label))],
                "name": plot_label(arm.label),
                "width": 0.55,
                "marker": {"color": colour(look), "opacity": 0.75},
                "error_x": error_bar(Look(None, "circle", "solid"), value, low, high),
                "hovertemplate": "%{x:.1f} %<extra>%{fullData.name}</extra>",
                "meta": {**meta, "arm": arm.id, "slot": look.slot},
            }
        )
        if arm.role == "baseline" and value is not None:
            traces.append(_baseline(arm, value, meta))
    return Panel(
        "divergence-bars",
        "divergence",
        "Divergences against the default",
        "Score with 95 % interval; the dashed line is the default's",
        traces,
        {
            **rows_layout("%", rangemode="tozero"),
            "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        },
        (score_control(results), Control("which", "At", WHICH.options[::-1])),
        "divergence",
        tall=True,
    )


def seeds(results: Results, drawn: Looks) -> Panel:
    """Each run's score beside its arm's mean: how far seeds alone spread."""
    traces: list[Trace] = []
    frame = results.outcomes[results.outcomes["score"].isin(["mean", "best"])]
    of_run: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(frame):
        of_run.setdefault(row["run"], []).append(row)
    number = dict(zip(results.records.runs["run"], results.records.runs["seed"], strict=True))
    for arm in results.arms:
        points: dict[tuple, list[tuple[int, float]]] = {}
        for run in arm.used:
            for row in of_run.get(run, ()):
                points.setdefault((row["benchmark"], row["score"], row["which"]), []).append(
                    (number[run], 100 * row["value"])
                )
        look = drawn[arm.id]
        for (benchmark, score, which), found in points.items():
            meta = {"arm": arm.id, "slot": look.slot, "benchmark": benchmark, "score": score, "which": which}
            traces += _spread(arm, look, found, meta)
    return Panel(
        "seeds",
        "seeds",
        "Seed by seed",
        "Each mark is one run, the bar the mean of its arm",
        traces,
        rows_layout("%"),
        (score_control(results), WHICH),
        tall=True,
    )


def cost(results: Results, drawn: Looks, costs: Mapping[str, Cost]) -> Panel:
    """Score against what it cost to train."""
    traces: list[Trace] = []
    for arm, row, meta in _estimated(results):
        if arm.id not in costs or arm.role == "teacher":
            continue
        value, low, high = (rounded(100 * row[number]) for number in ("value", "low", "high"))
        look = drawn[arm.id]
        for kind, title in COSTS:
            spent = getattr(costs[arm.id], kind)
            if math.isnan(spent):
                continue
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [rounded(spent)],
                    "y": [value],
                    "name": plot_label(arm.label),
                    "marker": {"symbol": look.marker, "size": 10, "color": colour(look)},
                    "error_y": error_bar(look, value, low, high),
                    "hovertemplate": f"{title.lower()}: %{{x}}<br>%{{y:.1f}} %<extra>%{{fullData.name}}</extra>",
                    "meta": {**meta, "arm": arm.id, "slot": look.slot, "cost": kind},
                }
            )
    return Panel(
        "cost",
        "cost",
        "Cost against score",
        "What training one run took, without its evaluations",
        traces,
        layout(x="", y="%"),
        (Control("cost", "Cost", COSTS), score_control(results), WHICH),
        titles=dict(COSTS),
    )


# ---- parts


def _estimated(results: Results) -> list[tuple[Arm, dict[str, Any], dict[str, str]]]:
    """(arm, row of its estimates, the choices it belongs to) of mean@k and best@k."""
    found = []
    for arm in results.arms:
        for benchmark in (AVERAGE, *results.benchmarks):
            for row in results.estimated.get((arm.id, benchmark), ()):
                if row["score"] in ("mean", "best") and not math.isnan(row["value"]):
                    meta = {"benchmark": benchmark, "score": row["score"], "which": row["which"]}
                    found.append((arm, row, meta))
    return found


def _point(
    arm: Arm, look: Look, value: float | None, low: float | None, high: float | None, meta: dict[str, Any]
) -> Trace:
    return {
        "type": "scatter",
        "x": [value],
        "y": [plot_label(short(arm.label))],
        "name": plot_label(arm.label),
        "mode": "markers",
        "marker": {"symbol": look.marker, "size": 10, "color": colour(look)},
        "error_x": error_bar(look, value, low, high),
        "meta": {"arm": arm.id, "slot": look.slot, **meta},
    }


def _baseline(arm: Arm, value: float, meta: dict[str, str]) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [value, value],
        "y": [0, 1],
        "yaxis": "y2",
        "name": plot_label(arm.label),
        "line": {"color": colour(Look(None, "circle", "dash")), "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
        "meta": {**meta, "slot": None},
    }


def _spread(arm: Arm, look: Look, found: list[tuple[int, float]], meta: dict[str, Any]) -> list[Trace]:
    values = [value for _, value in found]
    label = plot_label(short(arm.label))
    marks = {
        "type": "scatter",
        "mode": "markers",
        "x": [rounded(value) for value in values],
        "y": [label] * len(values),
        "text": [f"seed {seed}" for seed, _ in found],
        "name": plot_label(arm.label),
        "marker": {"symbol": look.marker, "size": 9, "opacity": 0.7, "color": colour(look)},
        "hovertemplate": "%{text}: %{x:.1f} %<extra>%{fullData.name}</extra>",
        "meta": meta,
    }
    mean = {
        "type": "scatter",
        "mode": "markers",
        "x": [rounded(sum(values) / len(values))],
        "y": [label],
        "name": plot_label(arm.label),
        "marker": {"symbol": "line-ns-open", "size": 22, "line": {"width": 2.5}, "color": colour(look)},
        "hovertemplate": "mean: %{x:.1f} %<extra>%{fullData.name}</extra>",
        "meta": meta,
    }
    return [marks, mean] if len(values) > 1 else [marks]
