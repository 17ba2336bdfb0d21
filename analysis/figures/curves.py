"""Curves over training: scores at each evaluation, and what each step recorded."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.figures.panel import (
    SHARE,
    Control,
    Panel,
    Styles,
    Trace,
    curve,
    layout,
    rounded,
    scatter,
    short,
    thin,
)
from analysis.results import Results
from analysis.stats.curves import ema
from analysis.text import plot_label

POINTS_PER_FIGURE, POINTS_PER_TRACE = 20_000, 200
MOST_ARMS_WITH_SEEDS = 60  # of more arms only means are drawn
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
# The choices of the two stability figures, after Figure 2 of the adventures post.
DIAGNOSTICS = ("grad_norm", "rollout_correction/log_ppl_drift", "entropy/student", "rollout_correction/masked")
OUTCOMES = ("divergence/reverse_kl", "response/length", "response/truncated")
SCORES = {"mean": "Share of correct answers", "best": "Share of problems with any correct answer"}
FROM_ZERO = {"rangemode": "tozero", "autorangeoptions": {**SHARE, "include": [0, 1]}}  # an axis of shares
SMOOTHED_FROM = 25  # evaluations: a moving average of fewer mostly shows its own lag

Curves = dict[str, list[Trace]]


def learning_curves(results: Results, styles: Styles, *, alpha: float) -> Curves:
    """Score → its traces on every benchmark, raw and smoothed. A teacher is a horizontal line at its score."""
    if results.by_step.empty:
        return {}
    last_step = int(results.by_step["step"].max())
    curves: Curves = {score: [] for score in SCORES}
    for benchmark, rows in results.by_step.groupby("benchmark"):
        by_score = rows.pivot(index="step", columns="run", values=list(SCORES))
        for score in SCORES:
            by_run = by_score[score] * 100
            for arm in results.arms:
                style, meta = styles[arm.id], {"arm": arm.id, "benchmark": str(benchmark)}
                values = _of(by_run, arm.used)
                if arm.role != "teacher":
                    for one in _curves(values, seeds=len(results.arms) <= MOST_ARMS_WITH_SEEDS):
                        x, y, smooth = one.step, one.values, ema(one.values, alpha=alpha)
                        mode = "lines" if one.seed else "lines+markers"
                        raw, smoothed = {**meta, "smooth": False}, {**meta, "smooth": True}
                        curves[score] += [
                            curve(arm.marked, style, x, y, mode, " %", raw, faint=one.seed),
                            curve(arm.marked, style, x, smooth, "lines", " %", smoothed, faint=one.seed),
                        ]
                        if not one.seed:
                            curves[score].append(curve(arm.marked, style, x, y, "markers", " %", smoothed, faint=True))
                elif (known := values.dropna(how="all")).size:
                    value = float(np.nanmean(known.iloc[-1]))
                    curves[score].append(
                        scatter(
                            arm.marked,
                            style,
                            [0, last_step],
                            [rounded(value)] * 2,
                            meta,
                            hover="%{y} %",
                            mode="lines+text",
                            text=[f"{plot_label(short(arm.marked))} {value:.1f}", ""],
                            textposition="top right",
                            cliponaxis=False,
                            line={"color": style.color, "width": 1.5, "dash": style.dash},
                        )
                    )
    return curves


def training_curves(results: Results, styles: Styles, *, alpha: float) -> Curves:
    """Metric → its traces, smoothed; only of metrics that a run recorded."""
    training, seeds = results.records.training, len(results.arms) <= MOST_ARMS_WITH_SEEDS
    recorded = [name for name in TRAINING if training[name].notna().any()]
    metrics = training.pivot(index="step", columns="run", values=recorded)
    curves: Curves = {}
    for name in recorded:
        by_run, unit = metrics[name] * (100 if name in PERCENT else 1), " %" if name in PERCENT else ""
        own = [(arm, one) for arm in results.arms for one in _curves(_of(by_run, arm.used or arm.runs), seeds=seeds)]
        points = max(20, min(POINTS_PER_TRACE, POINTS_PER_FIGURE // max(1, len(own))))
        curves[name] = []
        for arm, one in own:
            x, y = thin(one.step, ema(one.values, alpha=alpha), points)
            curves[name].append(curve(arm.marked, styles[arm.id], x, y, "lines", unit, {"arm": arm.id}, faint=one.seed))
    return curves


def many_evaluations(results: Results) -> bool:
    """Whether runs were evaluated often enough for a moving average of their scores to be of use."""
    evaluations = results.by_step.groupby("run")["step"].nunique()
    return bool(len(evaluations)) and float(evaluations.median()) >= SMOOTHED_FROM


def score_panels(group: str, title: str, results: Results, curves: Curves, topic: str | None = None) -> list[Panel]:
    """Scores over training: of the selected arms or, with `topic`, of those of a comparison."""
    scale = layout(x="step", y="%", yaxis=FROM_ZERO)
    return [
        Panel(f"{group}-{score}", group, title.format(results.label(score)), SCORES[score], traces, scale, topic=topic)
        for score, traces in curves.items()
    ]


def training_panels(curves: Curves) -> list[Panel]:
    """What each step recorded, one figure a metric."""
    return [
        Panel(
            name.replace("/", "-").replace("_", "-"),
            "training",
            *TRAINING[name],
            traces,
            layout(x="step", y="%", yaxis=FROM_ZERO) if name in PERCENT else layout(x="step", y=""),
        )
        for name, traces in curves.items()
    ]


def stability_panels(results: Results, learning: Curves, training: Curves) -> list[Panel]:
    """Figures 1 and 2 of the adventures post: diagnostics and outcomes, each by a metric of the reader's choice."""
    labels = {**{score: results.label(score) for score in SCORES}, **{name: TRAINING[name][0] for name in TRAINING}}
    panels = [
        _by_metric("diagnostics", "Stability diagnostics", "Early signs of instability", DIAGNOSTICS, training, labels),
        _by_metric("outcomes", "Outcomes", "What it leads to", (*SCORES, *OUTCOMES), {**learning, **training}, labels),
    ]
    return [panel for panel in panels if panel.traces]


def _by_metric(
    name: str, title: str, note: str, metrics: Sequence[str], curves: Curves, labels: Mapping[str, str]
) -> Panel:
    known = [metric for metric in metrics if metric in curves]
    return Panel(
        f"stability-{name}",
        "stability",
        title,
        note,
        [{**trace, "meta": {**trace["meta"], "metric": metric}} for metric in known for trace in curves[metric]],
        layout(x="step", y=""),
        (Control("metric", "Metric", tuple((metric, labels[metric]) for metric in known)),),
        "stability",
        {metric: labels[metric] + (", %" if metric in {*SCORES, *PERCENT} else "") for metric in known},
    )


class _Curve(NamedTuple):
    seed: bool  # whether it is one seed of several
    step: np.ndarray
    values: np.ndarray


def _of(by_run: pd.DataFrame, runs: Sequence[str]) -> pd.DataFrame:
    """The columns of these runs, where there are any."""
    return by_run[[run for run in runs if run in by_run.columns]]


def _curves(by_run: pd.DataFrame, *, seeds: bool) -> list[_Curve]:
    """The mean over seeds at the steps where all have a value, then each seed of several."""
    if by_run.empty:
        return []
    step, values = by_run.index.to_numpy(), by_run.to_numpy(float)
    single = list(values.T) if seeds and values.shape[1] > 1 else []
    every = [(False, values.mean(axis=1)), *((True, column) for column in single)]
    return [_Curve(seed, step[known], one[known]) for seed, one in every if (known := ~np.isnan(one)).any()]
