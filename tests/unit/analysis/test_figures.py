import itertools
import json

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure

from analysis.contrasts import Bootstrap
from analysis.costs import costs
from analysis.figures import curves, static
from analysis.figures.panel import DARK, LIGHT, TEACHER_DARK, TEACHER_LIGHT, Panel, arm_styles, thin
from analysis.figures.panels import all_panels
from analysis.load import load
from analysis.results import Results, analyse
from analysis.stats.curves import ema
from analysis.topics import members
from tests.unit.analysis.fake_runs import Fake, write_run

BOOTSTRAP = Bootstrap(count=200, seed=0)


def panels(results: Results, *, alpha: float) -> list[Panel]:
    return all_panels(results, members=members(results), costs=costs(results), alpha=alpha)


@pytest.fixture(scope="module")
def demo(demo_runs) -> tuple[Results, dict[str, Panel]]:
    results = analyse(load(demo_runs), baseline="default", bootstrap=BOOTSTRAP)
    return results, {panel.id: panel for panel in panels(results, alpha=0.15)}


def traces(panel: Panel, arm: str, **meta) -> list[dict]:
    return [
        trace
        for trace in panel.traces
        if trace["meta"]["arm"].startswith(arm) and all(trace["meta"].get(key) == meta[key] for key in meta)
    ]


def test_every_figure_is_one_that_plotly_takes(demo):
    _, shown = demo
    assert {panel.group for panel in shown.values()} == {"learning", "differences", "seeds", "training"}
    for panel in shown.values():
        figure = go.Figure(panel.traces, panel.layout)
        assert len(figure.data) == len(panel.traces) > 0
        json.dumps([panel.traces, panel.layout], allow_nan=False)


def test_axis_of_a_share_stays_between_0_and_100_percent(demo):
    _, shown = demo
    ends = {"clipmin": 0, "clipmax": 100}
    axes = {name: {**panel.layout["xaxis"], **panel.layout["yaxis"]} for name, panel in shown.items()}
    shares = {name for name, axis in axes.items() if axis.get("autorangeoptions", {}).items() >= ends.items()}
    assert shares >= {"filter-kept", "response-truncated", "learning-mean", "learning-best", "seeds"}
    assert not shares & {"grad-norm", "difference-mean"}


@pytest.mark.parametrize(("value", "low", "high"), [(0, 0, 1), (100, 0, 100), (40, 0, 45)])
def test_constant_share_on_paper_is_drawn_within_0_and_100_percent(demo, value: float, low: float, high: float):
    axes = Figure().subplots()
    axes.plot([0, 1], [value, value])
    static._label(axes, demo[1]["filter-kept"], {})
    assert axes.get_ylim() == pytest.approx((low, high), abs=3)


def test_learning_curve_is_the_mean_over_seeds_at_each_step(demo):
    results, shown = demo
    scored = results.by_step[
        results.by_step["run"].str.contains("default-") & (results.by_step["benchmark"] == "arithmetic")
    ]
    mean = scored.groupby("step")["mean"].mean() * 100
    curve = traces(shown["learning-mean"], "default", benchmark="arithmetic", smooth=False)
    assert len(curve) == 1 + 3  # the mean and its three seeds
    assert curve[0]["x"] == list(mean.index) and curve[0]["x"][0] == 0
    np.testing.assert_allclose(curve[0]["y"], mean, atol=0.006)
    smooth = traces(shown["learning-mean"], "default", benchmark="arithmetic", smooth=True)
    np.testing.assert_allclose(smooth[0]["y"], ema(mean.to_numpy(), alpha=0.15), atol=0.006)


def test_teacher_is_a_dashed_line_at_its_score_across_all_steps(demo):
    _, shown = demo
    for panel in (shown["learning-mean"], shown["learning-best"]):
        (line,) = traces(panel, "teacher-large", benchmark="arithmetic")
        assert line["x"] == [0, 100] and line["y"][0] == line["y"][1] > 95
        assert line["line"]["dash"] != "solid" and line["text"][0].startswith("teacher-large ")


def test_difference_has_its_interval(demo):
    results, shown = demo
    (point,) = traces(shown["difference-mean"], "hard_switch", benchmark="arithmetic")
    rows = results.differences
    row = rows[rows["arm"].str.startswith("hard_switch") & (rows["score"] == "mean") & (rows["which"] == "last")].iloc[
        0
    ]
    assert point["x"][0] == pytest.approx(100 * row["value"], abs=0.01)
    assert point["x"][0] + point["error_x"]["array"][0] == pytest.approx(100 * row["high"], abs=0.01)
    assert point["x"][0] - point["error_x"]["arrayminus"][0] == pytest.approx(100 * row["low"], abs=0.01)
    assert not traces(shown["difference-mean"], "default")
    assert not traces(shown["difference-mean"], "kl_70_100")  # unfinished


def test_training_curves_are_smoothed_and_named_for_what_was_recorded(demo):
    results, shown = demo
    training = results.records.training
    run = results.records.runs.loc[results.records.runs["name"] == "tis", "run"].iloc[0]
    recorded = training.loc[training["run"] == run, "grad_norm"].dropna()
    (curve,) = traces(shown["grad-norm"], "tis")
    np.testing.assert_allclose(curve["y"], ema(recorded.to_numpy(), alpha=0.15), rtol=1e-3)


def test_metric_that_no_run_recorded_has_no_figure(tmp_path):
    run = write_run(tmp_path, Fake(num_steps=2, every=2, benchmarks={"x": 3}))
    run.metrics_file.write_text('{"step": 1, "grad_norm": 1.0}\n')
    results = analyse(load(tmp_path), baseline="default", bootstrap=BOOTSTRAP)
    assert [panel.id for panel in panels(results, alpha=1)] == ["seeds", "learning-mean", "learning-best", "grad-norm"]


def test_no_records_no_figures(tmp_path):
    assert panels(analyse(load(tmp_path), baseline="default", bootstrap=BOOTSTRAP), alpha=0.15) == []


def test_long_curves_are_thinned_with_their_ends_kept():
    x = np.arange(10_000)
    few, _ = thin(x, x * 2.0, 150)
    assert len(few) == 150 and (few[0], few[-1]) == (0, 9_999) and np.diff(few).max() <= 68
    assert thin(x[:100], x[:100], 150)[0] is not None and len(thin(x[:100], x[:100], 150)[0]) == 100


def test_figure_of_many_runs_keeps_its_points_in_bounds(tmp_path):
    for seed in range(3):
        run = write_run(tmp_path, Fake(name=f"run-{seed}", num_steps=2, every=2, benchmarks={"x": 3}))
        run.metrics_file.write_text("".join(f'{{"step": {step}, "loss": 0, "grad_norm": 1}}\n' for step in range(3000)))
    results = analyse(load(tmp_path), baseline="default", bootstrap=BOOTSTRAP)
    (panel,) = (panel for panel in panels(results, alpha=0.15) if panel.id == "grad-norm")
    assert all(len(trace["x"]) <= curves.POINTS_PER_TRACE for trace in panel.traces)


def test_hostile_name_is_text_in_a_figure(tmp_path):
    write_run(tmp_path, Fake(num_steps=2, every=2, benchmarks={"x": 3}))
    write_run(tmp_path, Fake(name="<b onclick=x>&", num_steps=2, every=2, benchmarks={"x": 3}))
    results = analyse(load(tmp_path), baseline="default", bootstrap=BOOTSTRAP)
    names = {trace["name"] for panel in panels(results, alpha=0.15) for trace in panel.traces}
    assert names == {"default", "&lt;b onclick=x&gt;&amp;"}


# ---- looks


def test_no_two_of_the_first_24_arms_look_alike(demo):
    arms = [arm for arm in demo[0].arms if arm.role != "teacher"][:1]
    many = [type(arms[0])(**{**vars(arms[0]), "id": str(number)}) for number in range(24)]
    assert len(set(arm_styles(many, {}).values())) == 24


def test_arms_of_one_comparison_look_different_however_many_there_are(demo):
    (arm,) = [arm for arm in demo[0].arms if arm.role == "baseline"]
    many = [type(arm)(**{**vars(arm), "id": str(number)}) for number in range(100)]
    members = {"one": ["0", *map(str, range(1, 90, 9))], "two": ["0", "10", *map(str, range(2, 90, 9))]}
    drawn = arm_styles(many, members)
    for arms in members.values():
        assert len({drawn[arm] for arm in arms}) == len(arms) > 10
    assert set(drawn) == set(map(str, range(100)))


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio."""
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Björn Ottosson's Oklab of linear sRGB."""
    lms = np.cbrt(
        np.clip(rgb, 0, 1)
        @ np.array(
            [
                [0.4122214708, 0.2119034982, 0.0883024619],
                [0.5363325363, 0.6806995451, 0.2817188376],
                [0.0514459929, 0.1073969566, 0.6299787005],
            ]
        )
    )
    return lms @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


# Machado, Oliveira, Fernandes (2009), severity 1.
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_colours_are_told_apart(palette, vision):
    seen = [oklab(np.array(VISION[vision]) @ linear(colour)) for colour in palette]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 0.1


@pytest.mark.parametrize(
    ("palette", "surface"), [((*LIGHT, TEACHER_LIGHT), "#ffffff"), ((*DARK, TEACHER_DARK), "#1a1a19")]
)
def test_colours_stand_out_from_the_page(palette, surface):
    assert min(contrast(colour, surface) for colour in palette) >= 3
