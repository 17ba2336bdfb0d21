"""Whole runs with rollout=vllm: train, evaluate, checkpoint, resume."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opd.records.run_dir import RunDir
from opd.step import loop
from opd.train import run_dir, train
from tests.integration.conftest import composed
from tests.integration.test_resume import content
from tests.vllm.conftest import VLLM


@pytest.fixture
def run(small: list[str], tmp_path: Path):
    """Trains with these overrides; returns the run directory."""

    def train_with(*overrides: str, outputs: str = "outputs", state: str = "finished") -> RunDir:
        config = composed([*small, f"paths.outputs={tmp_path / outputs}", *overrides])
        assert train(config).state == state
        return run_dir(config)

    return train_with


def steps(folder: RunDir) -> list[dict[str, float]]:
    return [line for line in folder.metrics() if line["step"] > 0]


def test_a_run_in_float32_samples_from_the_learner_at_every_step(run):
    lines = steps(run(*VLLM, "optim.lr=0.01", "rollout.max_logp_drift=1e-4"))
    assert len(lines) == 4
    for line in lines:
        assert line["grad_norm"] > 0
        assert line["rollout_correction/abs_log_ratio"] < 1e-4
        assert abs(line["rollout_correction/ratio_max"] - 1) < 1e-3
        assert line["rollout_correction/masked"] == 0


def test_in_bfloat16_sampler_and_learner_disagree_and_mis_masks_what_is_far_off(run):
    correction = ("rollout_correction=mis", "rollout_correction.low=0.97", "rollout_correction.high=1.03")
    lines = steps(run(*VLLM, "optim.lr=0.01", "rollout.dtype=bfloat16", "rollout.max_logp_drift=null", *correction))
    for line in lines:
        assert 1e-3 < line["rollout_correction/abs_log_ratio"] < 0.3
        assert 0 < line["rollout_correction/masked"] < 1
        assert line["filter/kept"] == pytest.approx(1 - line["rollout_correction/masked"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_left_and_came_back_ends_as_one_that_stayed(dtype: str, run, monkeypatch: pytest.MonkeyPatch):
    """Records, answers and weights, bit for bit; the engine that comes back is a new one."""
    knobs = (*VLLM, f"rollout.dtype={dtype}", "optim.lr=0.01")
    expected = content(run(*knobs, outputs="stayed"))

    def signalled(run, number, step=loop.step):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, number)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", signalled)
        folder = run(*knobs, outputs="left", state="preempted")
    assert (folder.checkpoints / "step_000002").exists() and not folder.samples_file(2).exists()
    assert content(run(*knobs, outputs="left")) == expected


def test_the_commands_run_say_nothing_on_stderr_and_repeat_the_run(small: list[str], run, tmp_path: Path):
    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    here = run(*VLLM, "optim.lr=0.01")
    said = command("opd.train", *small, *VLLM, "optim.lr=0.01", f"paths.outputs={tmp_path / 'command'}")
    there = RunDir(tmp_path / "command" / here.path.relative_to(tmp_path / "outputs"))
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["step"] * 5
    assert lines[5] == f"{there.path}: finished"
    assert [line.split("python")[0].strip() for line in lines[6:]] == ["its report", "more answers"]
    ours, theirs = (load_file(each.checkpoints / "final" / "model.safetensors") for each in (here, there))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    scores = command("opd.evaluate", f"run={there.path}", f"paths.outputs={tmp_path / 'evaluated'}")
    examined = RunDir(Path(scores.splitlines()[-1]))
    assert len(examined.evaluations()[0].read_text().splitlines()) == 6
    assert json.loads((examined.path / "manifest.json").read_text())["packages"]["torch"]
