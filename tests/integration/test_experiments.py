"""Every experiment starts at scale tiny, and one step of it learns something.

A step without its run: whole ones are those of `make reproduce`, which `.ci/run` makes of every published arm.
"""

import math
from pathlib import Path

import pytest

from opd import cli
from opd.grading.grading import Grade
from opd.records.run_dir import RunDir
from opd.step import assemble, loop
from tests.covering import a_third
from tests.integration.conftest import composed
from tests.unit.small import ALONE

EXPERIMENTS = sorted(file.stem for file in (cli.CONF / "experiment").glob("*.yaml"))

# What small_run sets and an experiment is about, in the size of its models: 64 positions, 10 of them a prompt's.
SIZES = {
    "half_length": ["max_response_length=6"],
    "double_length": ["max_response_length=24"],
    "eight_samples": ["samples_per_prompt=8"],
    "one_sample": ["samples_per_prompt=1"],
}


@pytest.mark.parametrize("experiment", a_third(EXPERIMENTS))
def test_one_step_of_an_experiment(
    experiment: str, small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Random models solve nothing, and a prompt that is never solved has no pass rate to learn by.
    half_right = [Grade(index % 2 == 0, "", "equal") for index in range(8)]
    monkeypatch.setattr("opd.step.loop.grade_rollout", lambda *_, **__: half_right)
    config = composed(
        [
            *small_run,
            f"+experiment={experiment}",
            "evaluate.benchmarks=[]",
            f"paths.outputs={tmp_path}",
            *SIZES.get(experiment, []),
        ]
    )
    line = loop.step(assemble.assemble(config, RunDir(tmp_path), ALONE), 1)
    assert math.isfinite(line["loss"])
    if experiment == "self_teacher":
        assert line["grad_norm"] == 0
    else:
        assert line["grad_norm"] > 0 and math.isfinite(line["grad_norm"])
