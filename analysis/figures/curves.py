"""Curves over training: scores at each evaluation, and what each step recorded."""

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
        for score in SCORES:
            by_run = rows.pivot(index="step", columns="run", values=score) * 100
            for arm in results.arms:
                look, own = drawn[arm.id], {"arm": arm.id, "benchmark": str(benchmark)}
                values = by_run[[run for run in arm.used if run in by_run]].dropna(how="all")
                if arm.role == "teacher" and len(values):
                    found[score].append(_across(arm, look, float(values.iloc[-1].mean()), last_step, own))
                if arm.role == "teacher":
                    continue
                for seed, curve in _curves(values, seeds=len(results.arms) <= SEEDS_UP_TO):
                    found[score] += _scored(arm, look, curve, own, alpha, seed=seed)
    return found


def training_curves(results: Results, drawn: Looks, *, alpha: float) -> Curves:
    """Metric → its traces, smoothed; only metrics that a run recorded."""
    training = results.records.training
    recorded = [name for name in TRAINING if training[name].notna().any()]
    every = training.pivot(index="step", columns="run", values=recorded)
    found: Curves = {}
    for name in recorded:
        by_run = every[name] * (100 if name in PERCENT else 1)
        curves = []
        for arm in results.arms:
            values = by_run[[run for run in arm.used or arm.runs if run in by_run]]
            curves += [(arm, *curve) for curve in _curves(values, seeds=len(results.arms) <= SEEDS_UP_TO)]
        points = max(20, min(POINTS_PER_TRACE, POINTS_PER_FIGURE // max(1, len(curves))))
        unit = " %" if name in PERCENT else ""
        found[name] = []
        for arm, seed, curve in curves:
            x, y = thin(curve.index.to_numpy(), ema(curve.to_numpy(), alpha=alpha), points)
            found[name].append(line(arm.label, drawn[arm.id], x, y, "lines", unit, {"arm": arm.id}, faint=seed))
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


def _scored(arm: Arm, look: Look, curve: pd.Series, own: dict[str, str], alpha: float, *, seed: bool) -> list[Trace]:
    y, x = curve.to_numpy(), curve.index.to_numpy()
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


def _curves(values: pd.DataFrame, *, seeds: bool) -> list[tuple[bool, pd.Series]]:
    """(is one seed of several, curve): the mean over seeds where all have a value, then each of several."""
    mean = values.mean(axis=1, skipna=False).dropna()
    single = [values[run].dropna() for run in values.columns] if seeds and values.shape[1] > 1 else []
    return [(seed, curve) for seed, curve in [(False, mean), *((True, curve) for curve in single)] if len(curve)]


def _scores_layout() -> dict:
    return layout(x="step", y="%", yaxis={"rangemode": "tozero"})


def _unit(name: str) -> str:
    return "%" if name in PERCENT else ""


def _id(name: str) -> str:
    return name.replace("/", "-").replace("_", "-")
