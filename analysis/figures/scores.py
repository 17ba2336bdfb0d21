"""Figures of scores at the end of training: against the baseline, seed by seed, and against cost."""

import math
from collections.abc import Mapping
from typing import Any

from analysis.arms import Arm
from analysis.costs import COSTS, Cost
from analysis.evaluation import AVERAGE
from analysis.figures.panel import (
    GREY,
    Control,
    Panel,
    Styles,
    Trace,
    error_bars,
    layout,
    percent,
    rounded,
    rows_layout,
    scatter,
    short,
)
from analysis.results import Results, rows_of
from analysis.text import plot_label

WHICH = Control("which", "At", (("last", "the last step"), ("max", "the best step")))
WHICH_BEST_FIRST = Control("which", "At", WHICH.options[::-1])


def score_control(results: Results) -> Control:
    """The choice between mean@k and best@k."""
    return Control("score", "Score", tuple((score, results.label(score)) for score in ("mean", "best")))


def _certainty(row: Mapping[str, Any]) -> str:
    low, high = 100 * row["low"], 100 * row["high"]
    if row["same"]:
        return " (the same results)"
    return "" if math.isnan(low + high) else f"<br>95 %: {low:+.1f} to {high:+.1f}"


def differences(results: Results, styles: Styles, score: str) -> Panel:
    """Each arm that counts minus the baseline, at the last step."""
    traces: list[Trace] = []
    frame = results.differences
    frame = frame[(frame["score"] == score) & (frame["which"] == "last")]
    for arm in results.arms:
        for row in rows_of(frame[frame["arm"] == arm.id]):
            traces.append(
                scatter(
                    arm.marked,
                    styles[arm.id],
                    [percent(row)],
                    [_row(arm)],
                    {"arm": arm.id, "benchmark": row["benchmark"]},
                    hover=f"%{{x:+.1f}} points{_certainty(row)}",
                    error_x=error_bars(styles[arm.id], [row]),
                )
            )
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


def divergence_bars(results: Results, styles: Styles) -> Panel:
    """Figure 6 of the adventures post: the score of each divergence, and the default's as a dashed line."""
    traces: list[Trace] = []
    for arm, row, meta in _estimates(results):
        value, style = percent(row), styles[arm.id]
        traces.append(
            scatter(
                arm.marked,
                style,
                [value],
                [_row(arm)],
                {**meta, "arm": arm.id},
                hover="%{x:.1f} %",
                type="bar",
                orientation="h",
                width=0.55,
                marker={"color": style.color, "opacity": 0.75},
                error_x=error_bars(GREY, [row]),
                mode=None,
                line=None,
            )
        )
        if arm.role == "baseline" and value is not None:
            line = {"color": GREY.color, "width": 1.5, "dash": "dash"}
            traces.append(scatter(arm.marked, GREY, [value] * 2, [0, 1], meta, mode="lines", yaxis="y2", line=line))
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
        (score_control(results), WHICH_BEST_FIRST),
        "divergence",
        tall=True,
    )


def seeds(results: Results, styles: Styles) -> Panel:
    """Each run's score and the mean of its arm, which shows how much seeds alone differ."""
    traces: list[Trace] = []
    number = dict(zip(results.records.runs["run"], results.records.runs["seed"], strict=True))
    frame = results.outcomes[results.outcomes["score"].isin(["mean", "best"])]
    by_run = {str(run): rows for run, rows in frame.groupby("run")}
    for arm in results.arms:
        points: dict[tuple, list[tuple[int, float]]] = {}
        for run in arm.used:
            for row in rows_of(by_run[run]) if run in by_run else ():
                place = (row["benchmark"], row["score"], row["which"])
                points.setdefault(place, []).append((number[run], 100 * row["value"]))
        for (benchmark, score, which), scores in points.items():
            meta = {"arm": arm.id, "benchmark": benchmark, "score": score, "which": which}
            traces += _seeds(arm, styles, scores, meta)
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


def _seeds(arm: Arm, styles: Styles, scores: list[tuple[int, float]], meta: dict[str, Any]) -> list[Trace]:
    style, values = styles[arm.id], [value for _, value in scores]
    marks = scatter(
        arm.marked,
        style,
        [rounded(value) for value in values],
        [_row(arm)] * len(values),
        meta,
        hover="%{text}: %{x:.1f} %",
        text=[f"seed {seed}" for seed, _ in scores],
        marker={"symbol": style.marker, "size": 9, "opacity": 0.7, "color": style.color},
    )
    bar = {"symbol": "line-ns-open", "size": 22, "line": {"width": 2.5}, "color": style.color}
    mean = [rounded(sum(values) / len(values))]
    return [
        marks,
        *(
            [scatter(arm.marked, style, mean, [_row(arm)], meta, hover="mean: %{x:.1f} %", marker=bar)]
            if values[1:]
            else []
        ),
    ]


def cost(results: Results, styles: Styles, costs: Mapping[str, Cost]) -> Panel:
    """Score against the cost of training."""
    traces = [
        scatter(
            arm.marked,
            styles[arm.id],
            [rounded(getattr(costs[arm.id], kind))],
            [percent(row)],
            {**meta, "arm": arm.id, "cost": kind},
            hover=f"{title.lower()}: %{{x}}<br>%{{y:.1f}} %",
            error_y=error_bars(styles[arm.id], [row]),
        )
        for arm, row, meta in _estimates(results)
        if arm.id in costs and arm.role != "teacher"
        for kind, title in COSTS
        if not math.isnan(getattr(costs[arm.id], kind))
    ]
    return Panel(
        "cost",
        "cost",
        "Cost against score",
        "Cost of training one run, without its evaluations",
        traces,
        layout(x="", y="%", xaxis={"rangemode": "tozero"}),
        (Control("cost", "Cost", COSTS), score_control(results), WHICH),
        titles=dict(COSTS),
    )


def _estimates(results: Results) -> list[tuple[Arm, dict[str, Any], dict[str, str]]]:
    """(arm, row of its estimates, the choices that the row belongs to) of mean@k and best@k."""
    return [
        (arm, row, {name: row[name] for name in ("benchmark", "score", "which")})
        for arm in results.arms
        for benchmark in (AVERAGE, *results.benchmarks)
        for row in results.estimated.get((arm.id, benchmark), ())
        if row["score"] in ("mean", "best") and not math.isnan(row["value"])
    ]


def _row(arm: Arm) -> str:
    return plot_label(short(arm.marked))
