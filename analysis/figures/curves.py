"""Curves over training: scores at each evaluation, and what each step recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.arms import Arm
from analysis.figures.panel import Control, Look, Looks, Panel, Trace, colour, layout, line, rounded, short, thin
from analysis.results import Results
from analysis.stats.smoothing import ema
from analysis.text import plot_label

POINTS_PER_FIGURE, POINTS_PER_TRACE = 20_000, 200
SEEDS_UP_TO = 60  # arms: of more, only means are drawn
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
# What Figure 2 of the adventures post switches between, below and above.
DIAGNOSTICS = ("grad_norm", "rollout_correction/log_ppl_drift", "entropy/student", "rollout_correction/masked")
OUTCOMES = ("divergence/reverse_kl", "response/length", "response/truncated")
SCORES = ("mean", "best")
SMOOTHED_FROM = 25  # evaluations: a moving average of fewer mostly shows its own lag

Curves = dict[str, list[Trace]]


def learning_curves(results: Results, drawn: Looks, *, alpha: float) -> Curves:
    """Score → its traces, raw and smoothed, of every benchmark. A teacher is a line across at its score."""
    if results.by_step.empty:
        return {}
    last_step = int(results.by_step["step"].max())
    found: Curves = {score: [] for score in SCORES}
    for benchmark, rows in results.by_step.groupby("benchmark"):
        by_score = rows.pivot(index="step", columns="run", values=list(SCORES))
        for score in SCORES:
            by_run = _Runs.of(by_score[score] * 100)
            for arm in results.arms:
                look, own = drawn[arm.id], {"arm": arm.id, "benchmark": str(benchmark)}
                values = by_run.among(arm.used)
                if arm.role == "teacher" and (known := values[~np.isnan(values).all(axis=1)]).size:
                    found[score].append(_across(arm, look, float(np.nanmean(known[-1])), last_step, own))
                if arm.role == "teacher":
                    continue
                for curve in _curves(by_run.step, values, seeds=len(results.arms) <= SEEDS_UP_TO):
                    found[score] += _scored(arm, look, curve, own, alpha)
    return found


def training_curves(results: Results, drawn: Looks, *, alpha: float) -> Curves:
    """Metric → its traces, smoothed; only metrics that a run recorded."""
    training = results.records.training
    recorded = [name for name in TRAINING if training[name].notna().any()]
    every = training.pivot(index="step", columns="run", values=recorded)
    found: Curves = {}
    for name in recorded:
        by_run = _Runs.of(every[name] * (100 if name in PERCENT else 1))
        curves = [
            (arm, curve)
            for arm in results.arms
            for curve in _curves(
                by_run.step, by_run.among(arm.used or arm.runs), seeds=len(results.arms) <= SEEDS_UP_TO
            )
        ]
        points = max(20, min(POINTS_PER_TRACE, POINTS_PER_FIGURE // max(1, len(curves))))
        unit = " %" if name in PERCENT else ""
        found[name] = []
        for arm, curve in curves:
            x, y = thin(curve.step, ema(curve.values, alpha=alpha), points)
            found[name].append(line(arm.label, drawn[arm.id], x, y, "lines", unit, {"arm": arm.id}, faint=curve.seed))
    return found


def many_evaluations(results: Results) -> bool:
    """Whether runs were evaluated often enough for a moving average of their scores to say something."""
    evaluations = results.by_step.groupby("run")["step"].nunique()
    return bool(len(evaluations)) and float(evaluations.median()) >= SMOOTHED_FROM


def learning_panels(results: Results, curves: Curves) -> list[Panel]:
    """Scores over training, of the runs that the reader chose."""
    return [
        Panel(f"learning-{score}", "learning", results.label(score), _NOTES[score], curves[score], _scores_layout())
        for score in curves
    ]


def training_panels(curves: Curves) -> list[Panel]:
    """What each step recorded, one figure a metric."""
    return [
        Panel(_id(name), "training", *TRAINING[name], traces, layout(x="step", y=_unit(name)))
        for name, traces in curves.items()
    ]


def ensemble_panels(results: Results, curves: Curves) -> list[Panel]:
    """Figure 8 of the adventures post: the ensembles' scores over training."""
    return [
        Panel(
            f"ensemble-{score}",
            "ensemble",
            f"{results.label(score)} over training",
            _NOTES[score],
            curves[score],
            _scores_layout(),
            topic="ensemble",
        )
        for score in curves
    ]


def stability_panels(results: Results, learning: Curves, training: Curves) -> list[Panel]:
    """Figures 1 and 2 of the adventures post: diagnostics and outcomes, each by a metric of the reader's choice."""
    labels = {**{score: results.label(score) for score in SCORES}, **{name: TRAINING[name][0] for name in TRAINING}}
    percent = {*SCORES, *PERCENT}
    titles = {name: f"{label}, %" if name in percent else label for name, label in labels.items()}
    found = []
    for name, title, note, names in (
        ("diagnostics", "Stability diagnostics", "What shows first that training goes wrong", DIAGNOSTICS),
        ("outcomes", "Outcomes", "What comes of it", (*SCORES, *OUTCOMES)),
    ):
        known = [(metric, {**learning, **training}[metric]) for metric in names if metric in {**learning, **training}]
        traces = [
            {**trace, "meta": {**trace["meta"], "metric": metric}} for metric, traces in known for trace in traces
        ]
        control = Control("metric", "Metric", tuple((metric, labels[metric]) for metric, _ in known))
        found.append(
            Panel(
                f"stability-{name}",
                "stability",
                title,
                note,
                traces,
                layout(x="step", y=""),
                (control,),
                "stability",
                {metric: titles[metric] for metric, _ in known},
            )
        )
    return [panel for panel in found if panel.traces]


_NOTES = {"mean": "Answers that are right", "best": "Problems with any right answer"}


def _scored(arm: Arm, look: Look, curve: "_Curve", own: dict[str, str], alpha: float) -> list[Trace]:
    seed, x, y = curve
    raw, smooth = {**own, "smooth": False}, {**own, "smooth": True}
    traces = [
        line(arm.label, look, x, y, "lines" if seed else "lines+markers", " %", raw, faint=seed),
        line(arm.label, look, x, ema(y, alpha=alpha), "lines", " %", smooth, faint=seed),
    ]
    return traces if seed else [*traces, line(arm.label, look, x, y, "markers", " %", smooth, faint=True)]


def _across(arm: Arm, look: Look, value: float, last_step: int, meta: dict[str, str]) -> Trace:
    return {
        "type": "scatter",
        "x": [0, last_step],
        "y": [rounded(value)] * 2,
        "name": plot_label(arm.label),
        "mode": "lines+text",
        "text": [f"{plot_label(short(arm.label))} {value:.1f}", ""],
        "textposition": "top right",
        "cliponaxis": False,
        "line": {"color": colour(look), "width": 1.5, "dash": look.dash},
        "hovertemplate": "%{y} %<extra>%{fullData.name}</extra>",
        "meta": {**meta, "slot": look.slot},
    }


@dataclass(frozen=True)
class _Runs:
    """Values over steps, "step run"; NaN where there is none."""

    step: np.ndarray
    place: dict[str, int]  # of a run's column
    values: np.ndarray

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "_Runs":
        return cls(frame.index.to_numpy(), {run: at for at, run in enumerate(frame.columns)}, frame.to_numpy(float))

    def among(self, runs: Sequence[str]) -> np.ndarray:
        """Those of these runs, where they have any."""
        return self.values[:, [self.place[run] for run in runs if run in self.place]]


class _Curve(NamedTuple):
    seed: bool  # whether it is one seed of several
    step: np.ndarray
    values: np.ndarray


def _curves(step: np.ndarray, values: np.ndarray, *, seeds: bool) -> list[_Curve]:
    """The mean over seeds where all have a value, then each of several."""
    if not values.size:
        return []
    single = list(values.T) if seeds and values.shape[1] > 1 else []
    every = [(False, values.mean(axis=1)), *((True, column) for column in single)]
    return [_Curve(seed, step[known], curve[known]) for seed, curve in every if (known := ~np.isnan(curve)).any()]


def _scores_layout() -> dict:
    return layout(x="step", y="%", yaxis={"rangemode": "tozero"})


def _unit(name: str) -> str:
    return "%" if name in PERCENT else ""


def _id(name: str) -> str:
    return name.replace("/", "-").replace("_", "-")
