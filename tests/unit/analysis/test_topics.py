from pathlib import Path

import pytest
import yaml

from analysis.contrasts import Bootstrap
from analysis.figures.explorer import axes, value_text
from analysis.load import load
from analysis.results import analyse
from analysis.topics import TOPICS, belongs, counted, members
from opd.records.run_dir import changed_keys
from tests.goldens import goldens
from tests.unit.analysis.fake_runs import Fake, write_run

SWEEPS = Path(__file__).parents[3] / "conf/sweep"


def golden(name: str) -> dict:
    return counted(goldens("tiny")[name])


def published(sweep: str) -> list[str]:
    """The experiments of a sweep, less its baseline."""
    config = yaml.safe_load((SWEEPS / f"{sweep}.yaml").read_text())["sweep"]
    return [arm for grid in config["grid"] for arm in grid["+experiment"] if arm != "mis"]


@pytest.mark.parametrize(
    "sweep",
    [topic.name for topic in TOPICS if (SWEEPS / f"{topic.name}.yaml").exists()],
)
def test_arms_of_a_published_sweep_belong_to_its_figure(sweep):
    (topic,) = (topic for topic in TOPICS if topic.name == sweep)
    for arm in published(sweep):
        keys = set(changed_keys(golden("mis"), golden(arm)))
        if keys and arm != "whitening_none":  # no change: at this scale it is the default itself
            assert belongs(topic, keys), (arm, keys)


def test_arm_that_moves_two_things_belongs_to_neither_figure():
    keys = set(changed_keys(golden("mis"), golden("entropy_top_20")))
    assert {key.partition(".")[0] for key in keys} == {"divergence", "filter"}
    assert not any(belongs(topic, keys) for topic in TOPICS)


def test_what_names_a_run_is_no_change():
    assert changed_keys(golden("mis"), golden("default")) == []


def test_baseline_stands_first_and_a_comparison_of_none_is_left_out(published_runs):
    results = analyse(load(published_runs), baseline="mis", bootstrap=Bootstrap(count=100, seed=0))
    found = members(results)
    assert results.baseline and all(arms[0] == results.baseline.id for arms in found.values())
    assert [arm.rpartition("-")[0] for arm in found["stability"]] == ["mis", "naive", "tis"]
    assert "gamma" not in found


def test_no_baseline_no_comparison(tmp_path):
    write_run(tmp_path, Fake(name="other", num_steps=2, every=2, benchmarks={"x": 3}))
    assert members(analyse(load(tmp_path), baseline="default", bootstrap=Bootstrap(count=100, seed=0))) == {}


def test_values_of_an_axis_are_in_order(published_runs):
    results = analyse(load(published_runs), baseline="mis", bootstrap=Bootstrap(count=100, seed=0))
    found = {
        topic.name: [(value, arm.label) for value, arm in values] for topic, values in axes(results, members(results))
    }
    assert found["temperature"] == [("0.5", "temperature_0_5"), ("1.0", "mis"), ("1.2", "temperature_1_2")]
    assert found["teacher_size"] == [("sft:large", "mis"), ("sft:small", "teacher_smallest")]


def test_value_of_a_config_is_said_in_a_word():
    assert (
        value_text(["Qwen/Qwen3-4B"]) == "Qwen3-4B"
        and value_text([0.9, 0.95]) == "0.9, 0.95"
        and value_text(None) == "None"
    )
