"""The published figures and what is printed of them, on a made-up study of published arms."""

import math

import numpy as np
import pytest
import torch

from analysis.arm_details import read_details
from analysis.contrasts import Bootstrap
from analysis.costs import costs
from analysis.figures import static
from analysis.figures.panel import Panel
from analysis.figures.panels import all_panels
from analysis.figures.ratios import WEIGHTS
from analysis.load import load
from analysis.results import Results, analyse
from analysis.topics import members
from opd.objective import divergence
from opd.records.run_dir import find_runs

EXACT = {
    "reverse KL": divergence.reverse_kl(),
    "forward KL": divergence.forward_kl(),
    "Jensen–Shannon": divergence.jensen_shannon(),
    "Hellinger": divergence.hellinger(),
    "Tsallis, α = 1.5": divergence.tsallis(alpha=1.5),
    "naive k3": divergence.k3_naive(),
}


@pytest.fixture(scope="module")
def study(published_runs) -> tuple[Results, dict[str, Panel]]:
    results = analyse(load(published_runs), baseline="mis", bootstrap=Bootstrap(count=100, seed=0))
    found = all_panels(results, members=members(results), costs=costs(results), alpha=0.15)
    return results, {panel.id: panel for panel in found}


def chosen(panel: Panel, **meta) -> list[dict]:
    return [trace for trace in panel.traces if all(trace["meta"].get(key) == meta[key] for key in meta)]


def named(results: Results, label: str) -> str:
    return next(arm.id for arm in results.arms if arm.label == label)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_that_training_uses(name):
    u = np.linspace(-4, 4, 33)
    torch.testing.assert_close(torch.from_numpy(WEIGHTS[name](u)), EXACT[name].advantage(torch.from_numpy(u)))


def test_ratios_show_the_share_of_tokens_at_each_ratio(study):
    results, shown = study
    (bars,) = chosen(shown["ratios"], run=named(results, "mis"))
    rollouts = results.records.details[named(results, "mis")].rollouts
    assert rollouts is not None
    at = bars["x"].index(0.05)  # the bin from 0 to 0.1
    assert bars["y"][at] == pytest.approx(100 * rollouts.counts[80] / 1003, rel=1e-3)


def test_stability_switches_between_what_was_recorded_and_what_was_scored(study):
    results, shown = study
    diagnostics, outcomes = shown["stability-diagnostics"], shown["stability-outcomes"]
    assert [value for value, _ in diagnostics.controls[0].options][:2] == [
        "grad_norm",
        "rollout_correction/log_ppl_drift",
    ]
    assert [value for value, _ in outcomes.controls[0].options][:3] == ["mean", "best", "divergence/reverse_kl"]
    (norm,) = (
        trace
        for trace in chosen(diagnostics, metric="grad_norm", arm=named(results, "naive"))
        if "faint" not in trace["meta"]
    )
    (same,) = (
        trace for trace in chosen(shown["grad-norm"], arm=named(results, "naive")) if "faint" not in trace["meta"]
    )
    assert norm["y"] == same["y"]


def test_explorer_has_a_point_for_each_value(study):
    results, shown = study
    line = chosen(shown["explorer"], axis="temperature", score="mean", which="max")
    assert [trace["name"] for trace in line] == ["average", "aime24", "hmmt25"]
    average = line[0]
    assert average["x"] == ["0.5", "1.0", "1.2"]
    row = next(
        row
        for row in results.estimated[average["meta"]["arms"][0], "average"]
        if (row["score"], row["which"]) == ("mean", "max")
    )
    assert average["y"][0] == pytest.approx(100 * row["value"], abs=0.01)
    assert average["y"][0] + average["error_y"]["array"][0] == pytest.approx(100 * row["high"], abs=0.02)


def test_divergence_bars_have_the_default_as_a_line(study):
    results, shown = study
    found = chosen(shown["divergence-bars"], benchmark="average", score="mean", which="max")
    (line,) = (trace for trace in found if trace["type"] == "scatter")
    (bar,) = (trace for trace in found if trace["meta"].get("arm") == named(results, "mis"))
    assert line["x"] == bar["x"] * 2
    assert (
        shown["divergence-bars"].topic == "divergence" and shown["divergence-bars"].controls[1].options[0][0] == "max"
    )


def test_seeds_are_shown_beside_their_mean(study):
    results, shown = study
    marks, mean = chosen(shown["seeds"], arm=named(results, "mis"), benchmark="average", score="mean", which="last")
    assert marks["text"] == ["seed 0", "seed 1"] and mean["x"][0] == pytest.approx(np.mean(marks["x"]), abs=0.01)


def test_cost_is_the_time_of_all_devices(study):
    results, shown = study
    spent = costs(results)[named(results, "mis")]
    assert spent.hours == pytest.approx(20 * 3.6 * 2 / 3600) and spent.tokens == pytest.approx(20 * 5000 / 1e6)
    (point,) = chosen(
        shown["cost"], arm=named(results, "mis"), cost="hours", score="mean", which="last", benchmark="average"
    )
    assert point["x"] == [pytest.approx(0.04)]


def test_cost_that_a_step_lacks_is_missing(tmp_path, published_runs):
    from tests.unit.analysis.fake_runs import Fake, write_run

    run = write_run(tmp_path, Fake(num_steps=2, every=2, benchmarks={"x": 3}))
    run.metrics_file.write_text('{"step": 1, "time/step": 1.0, "response/tokens": 5}\n{"step": 2, "time/step": 1.0}\n')
    results = analyse(load(tmp_path), baseline="default", bootstrap=Bootstrap(count=100, seed=0))
    (spent,) = costs(results).values()
    assert math.isnan(spent.tokens) and spent.hours == pytest.approx(2 / 3600)


def test_damaged_rollouts_and_manifest_cost_nothing_but_themselves(tmp_path):
    from tests.unit.analysis.fake_runs import Fake, write_run
    from tests.unit.analysis.published_runs import rollouts

    run = write_run(tmp_path, Fake(num_steps=2, every=2, benchmarks={"x": 3}))
    run.write_rollouts(1, rollouts(np.random.default_rng(0)), "")
    run.write_rollouts(2, {"step": 2}, "")
    run.manifest_file.write_text("not json")
    details, damage = read_details([("arm", "a", run) for run in find_runs(tmp_path)])
    found = details["arm"]
    assert [(path, what) for path, what, _ in damage] == [("a", "its rollouts at step 2")]
    assert found.ranks == 1 and found.rollouts is not None and found.rollouts.step == 1


# ---- on paper


def few(study, *ids: str) -> list[Panel]:
    return [study[1][name] for name in ids]


def test_prints_are_the_same_bytes_again_and_have_no_date(study):
    results, _ = study
    given = few(study, "ratios", "divergence-bars"), members(results)
    first, again = (dict(static.static_figures(*given, smooth=False)) for _ in range(2))
    assert first == again
    assert {"ratios.svg", "ratios.png", "divergence-bars-mean.svg", "divergence-bars-best.png"} <= set(first)
    svg = first["divergence-bars-mean.svg"].decode()
    assert svg.startswith("<?xml") and "<dc:date>" not in svg
    assert first["divergence-bars-mean.png"].startswith(b"\x89PNG")


def test_print_shows_the_arms_of_its_comparison_at_the_average(study):
    results, shown = study
    choices = {control.key: control.options[0][0] for control in shown["divergence-bars"].controls}
    found = static.visible_traces(shown["divergence-bars"], choices, members(results), smooth=False)
    assert [trace["name"] for trace in found if trace["type"] == "bar"] == ["mis", "hellinger", "naive_k3"]
    assert {trace["meta"]["benchmark"] for trace in found} == {"average"}


def test_hostile_name_is_text_in_a_print(study, recwarn):
    panel = study[1]["learning-mean"]
    traces = [{**trace, "name": "&lt;script&gt;$\\frac{$ _x \ufffd"} for trace in panel.traces]
    found = dict(static.static_figures([Panel(**{**vars(panel), "traces": traces})], {}, smooth=False))
    assert b"<script" not in found["learning-mean.svg"] and not list(recwarn)
