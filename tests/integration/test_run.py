"""What a whole run does: the identities that hold whatever the method, and how a run is interrupted."""

import errno
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opd.records.run_dir import RunDir
from opd.step import assemble, loop
from opd.train import run_dir, train
from tests.covering import a_third
from tests.forks import forked, run_module
from tests.integration import child
from tests.integration.conftest import composed
from tests.unit.small import ALONE


@pytest.fixture
def run(small_run: list[str], tmp_path: Path):
    """Trains with these overrides; returns the run directory."""

    def train_with(*overrides: str, outputs: str = "outputs") -> RunDir:
        config = composed([*small_run, f"paths.outputs={tmp_path / outputs}", *overrides])
        assert train(config).state == "finished"
        return run_dir(config)

    return train_with


@pytest.fixture(scope="module")
def plain(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run without further overrides, to read only."""
    config = composed([*small_run, f"paths.outputs={tmp_path_factory.mktemp('plain')}"])
    assert train(config).state == "finished"
    return run_dir(config)


def weights(folder: RunDir) -> dict[str, torch.Tensor]:
    return load_file(folder.checkpoints / "final" / "model.safetensors")


def steps(folder: RunDir) -> list[dict[str, float]]:
    return [line for line in folder.metrics() if line["step"] > 0]


def test_a_student_that_is_its_own_teacher_has_no_advantage_and_stays_as_it_is(run, models: Path):
    folder = run("teacher=self")
    for line in steps(folder):
        assert line["divergence/reverse_kl"] == 0 and line["loss"] == 0 and line["grad_norm"] == 0
    start = load_file(models / "student" / "model.safetensors")
    assert all(torch.equal(start[name], tensor) for name, tensor in weights(folder).items())


def test_learning_brings_the_student_closer_to_its_teacher(run):
    folder = run("num_steps=8", "optim.lr=0.03", "samples_per_prompt=8", "evaluate.every=0", "checkpoint.every=0",
                 "checkpoint.keep=1")  # fmt: skip
    kl = [line["divergence/reverse_kl"] for line in steps(folder)]
    assert sum(kl[-2:]) < 0.8 * sum(kl[:2])


def test_micro_batches_and_logit_chunks_change_nothing_but_rounding(run, plain: RunDir):
    whole, split = plain, run("memory.micro_batch_tokens=24", "memory.logit_chunk=3")
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], tensor, atol=2e-6, rtol=1e-5)
    for one, other in zip(steps(whole), steps(split), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_the_same_config_and_seed_give_the_same_run_and_another_seed_another(run, plain: RunDir):
    first, again, other = plain, run(), run("seed=1")
    assert all(torch.equal(weights(first)[name], weights(again)[name]) for name in weights(first))
    assert first.path.name == again.path.name and first.path.name != other.path.name
    assert steps(first)[0]["loss"] != steps(other)[0]["loss"]


def test_one_teacher_is_a_ladder_of_one_stage(run, models: Path):
    """Hard switch between twins is the single teacher."""
    twin = models / "large"
    single = run(f"teacher.models=[{twin}]")
    switch = run(f"scale.ladder=[{twin},{twin}]", "+experiment=hard_switch")
    assert all(torch.equal(weights(single)[name], tensor) for name, tensor in weights(switch).items())


def test_hard_switch_loads_one_teacher_at_a_time_smallest_first(run, models: Path, monkeypatch: pytest.MonkeyPatch):
    from opd.step import assemble
    from opd.teacher import load as teachers

    loaded = []
    original = assemble.load_model
    for module in (assemble, teachers):
        monkeypatch.setattr(
            module,
            "load_model",
            lambda model, **settings: (loaded.append(Path(model).name), original(model, **settings))[1],
        )
    run("+experiment=hard_switch", "num_steps=6", "checkpoint.every=2")
    assert loaded == ["student", "small", "medium", "large"]


def test_a_filtered_run_trains_on_the_share_it_says(run):
    for line in steps(run("+experiment=kl_70_100")):
        assert line["filter/kept"] == pytest.approx(0.3, abs=1 / line["response/tokens"])


LADDER = "teacher=ladder"
METHODS = [
    *(
        f"divergence={name}"
        for name in (
            "forward_kl", "jeffreys", "jensen_shannon", "generalized_jensen_shannon", "hellinger", "tsallis",
            "alpha_divergence", "skew_kl", "skew_forward_kl", "total_variation", "entropy_aware", "k3_naive",
            "k2_naive", "value_weighted",
        )
    ),
    "divergence=split filter=partition",
    *(f"{LADDER} ensemble={name}" for name in ("arithmetic", "geometric", "advantage_mean", "soft_switch")),
    *(f"{LADDER} ensemble={name}" for name in ("hard_switch", "random", "best_of")),
    f"{LADDER} ensemble=by_domain ensemble.domain={{addition:0,subtraction:1,multiplication:2,chain:2}}",
    "rollout_correction=none", "rollout_correction=tis", "rollout_correction=icepop",
    "rollout_correction.level=sequence",
    f"{LADDER} ensemble=control_token", f"{LADDER} ensemble=control_token ensemble.teacher_sees_token=true",
    "support=full whitening=none", "support=topk whitening=none support.k=4",
    "support=full whitening=none divergence=split filter=partition",
    f"support=full whitening=none {LADDER} ensemble=geometric ensemble.normalize=true",
    f"support=topk support.tail=bucket whitening=none {LADDER} ensemble=advantage_mean",
    "filter=exact_kl", "filter.exclude_special=true filter.exclude_ids=[20]", "filter.prefix_length=3",
    "mini_batch_size=2 clip.low=0.2 clip.high=0.2", "support=full whitening=none mini_batch_size=1 signal.entropy=0.1",
    "credit=sequence gamma=1.0", "shaping.log_ratio_clamp=1.0", "shaping.baseline=group whitening=batch",
    "shaping.advantage_clip=1.0", "shaping=near_start", "shaping=extrapolated", "shaping=prefix_weighted",
    "filter=kl", "filter=kl filter.scope=sequence filter.denominator=kept", "filter=signed_kl",
    "filter=student_entropy", "filter=teacher_entropy filter.scope=group",
]  # fmt: skip


# Whole runs of those that a run does more for than a step: teachers that take turns, prompts and updates of their own.
WHOLE = [
    f"{LADDER} ensemble=hard_switch", f"{LADDER} ensemble=control_token ensemble.teacher_sees_token=true",
    "support=topk whitening=none support.k=4", "mini_batch_size=2 clip.low=0.2 clip.high=0.2",
]  # fmt: skip


@pytest.mark.parametrize("method", a_third(METHODS))
def test_a_step_of_every_method_has_a_finite_gradient_that_is_not_zero(
    small_run: list[str], method: str, tmp_path: Path
):
    config = composed([*small_run, "evaluate.benchmarks=[]", *method.split()])
    metrics = loop.step(assemble.assemble(config, RunDir(tmp_path), ALONE), 1)
    assert math.isfinite(metrics["loss"]) and 0 < metrics["grad_norm"] < math.inf


@pytest.mark.parametrize("method", WHOLE)
def test_a_whole_run_of_a_method_learns_at_every_step(run, method: str):
    assert method in METHODS
    for line in steps(run("num_steps=2", "evaluate.at_start=false", "evaluate.benchmarks=[]", *method.split())):
        assert math.isfinite(line["loss"]) and 0 < line["grad_norm"] < math.inf


def test_every_method_file_is_in_the_table_above():
    from opd.cli import CONF

    used = {word for method in METHODS for word in method.split()}
    for group in ("divergence", "support", "ensemble", "filter", "rollout_correction"):
        choices = {f"{group}={file.stem}" for file in (CONF / group).glob("*.yaml") if file.stem != "base"}
        defaults = {"divergence=reverse_kl", "support=sampled", "ensemble=single", "filter=none"}
        defaults.add("rollout_correction=mis")
        assert choices - defaults - used == set()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_rounded_sampler_disagrees_with_the_learner_and_mis_masks_what_is_far_off(run, plain: RunDir, dtype: str):
    exact = steps(plain)
    rounded = steps(run(f"rollout.dtype={dtype}", "rollout_correction.low=0.99", "rollout_correction.high=1.01"))
    assert max(line["rollout_correction/abs_log_ratio"] for line in exact) < 1e-5
    for line in rounded:
        assert line["rollout_correction/abs_log_ratio"] > 1e-4
        assert 0 < line["rollout_correction/masked"] < 1


@pytest.mark.parametrize(
    "knob", ["gamma=0.5", "whitening=none", "whitening=group", "signal.entropy=0.1", "loss=sequence_mean"]
)
def test_every_shaping_knob_acts(run, plain: RunDir, knob: str):
    assert steps(plain)[1]["loss"] != steps(run("num_steps=2", "evaluate.benchmarks=[]", knob))[1]["loss"]


def test_the_first_steps_of_a_shorter_run_are_those_of_a_longer_one(run, plain: RunDir):
    shorter = run("num_steps=2", "evaluate.benchmarks=[]")
    assert [line["loss"] for line in steps(shorter)] == [line["loss"] for line in steps(plain)[:2]]


def test_the_entropy_bonus_keeps_the_student_broader(run):
    settings = ("num_steps=8", "optim.lr=0.02", "evaluate.every=0")
    plain, bonus = run(*settings), run(*settings, "signal.entropy=5.0")
    assert steps(bonus)[-1]["entropy/student"] > steps(plain)[-1]["entropy/student"] + 0.05


def test_a_step_that_is_no_number_stops_the_run_and_keeps_the_last_good_weights(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from opd.errors import UserError
    from opd.step import learn

    calls = iter(range(100))
    original = learn.whiten

    def poisoned(*arguments):
        advantage, mean, std = original(*arguments)
        return (advantage * math.nan if next(calls) == 2 else advantage), mean, std

    monkeypatch.setattr(learn, "whiten", poisoned)
    config = composed([*small_run, f"paths.outputs={tmp_path}"])
    with pytest.raises(UserError, match=r"step 3: loss is nan"):
        train(config)
    folder = run_dir(config)
    assert folder.status().state == "failed" and folder.status().step == 2
    monkeypatch.setattr(learn, "whiten", original)
    assert train(config).state == "finished"


def test_the_newest_checkpoints_and_the_best_stay(run):
    folder = run("num_steps=8", "checkpoint.keep=2", "evaluate.every=2")
    scores = {line["step"]: line["evaluate/mean@2"] for line in steps(folder) if "evaluate/mean@2" in line}
    best = max(scores, key=lambda step: (scores[step], -step))
    kept = {path.name for path in folder.checkpoints.iterdir()}
    assert kept == {"step_000007", "step_000008", f"step_{best:06d}", "final"}


def test_the_final_checkpoint_loads_in_transformers_as_it_was_trained(plain: RunDir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = plain
    model = AutoModelForCausalLM.from_pretrained(folder.checkpoints / "final")
    tokenizer = AutoTokenizer.from_pretrained(folder.checkpoints / "final")
    assert tokenizer.encode("1+2=") and model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    for name, tensor in weights(folder).items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_recorded_config_repeats_its_run(plain: RunDir, tmp_path: Path):
    folder = plain
    given = [f"config={folder.config_file}", f"paths.outputs={tmp_path / 'repeated'}"]
    again = run_module("opd.train", *given, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    repeated = RunDir(tmp_path / "repeated" / "main" / folder.path.name)
    assert all(torch.equal(weights(folder)[name], weights(repeated)[name]) for name in weights(folder))
    assert {path.name for path in tmp_path.iterdir()} == {"repeated"}


@pytest.fixture
def long(small_run: list[str], tmp_path: Path) -> list[str]:
    """What a command is given for a run that is not over before something happens to it."""
    return [*small_run, f"paths.outputs={tmp_path}", "num_steps=24", "epochs=3", "evaluate.every=12"]


def test_a_signal_saves_says_preempted_and_the_same_command_goes_on(long: list[str], tmp_path: Path):
    command = [sys.executable, "-m", "opd.train", *long]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step  2/24"):
                process.send_signal(signal.SIGTERM)
                break
        _, error = process.communicate(timeout=240)
    was_preempted(process.returncode, error, long, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGHUP, signal.SIGINT])
def test_other_signals_do_as_much(number: int, long: list[str], tmp_path: Path):
    """Here the command is forked from a process that has imported what it needs."""
    said = tmp_path / "said"
    process = forked(child.command, long, said)
    while process.is_alive() and not (said.with_suffix(".out").exists() and "step  2/24" in printed(said, ".out")):
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(240)
    was_preempted(process.exitcode, printed(said, ".err"), long, tmp_path)


def printed(said: Path, suffix: str) -> str:
    return said.with_suffix(suffix).read_text()


def was_preempted(status: int | None, error: str, given: list[str], outputs: Path) -> None:
    folder = RunDir(next((outputs / "main").iterdir()))
    assert status == 75 and "preempted; rerun the same command" in error
    stopped = folder.status()
    assert stopped.state == "preempted" and 2 < stopped.step < 24
    assert (folder.checkpoints / f"step_{stopped.step:06d}").is_dir()
    assert train(composed(given)).state == "finished"
    assert [line["step"] for line in folder.metrics()] == list(range(25))


def test_a_full_disk_is_said_in_one_sentence_and_loses_nothing(small_run: list[str], tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode and not os.environ.get("CI"):
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    assert mounted.returncode == 0, mounted.stderr
    given = [*small_run, f"paths.outputs={disk}"]
    try:
        full = run_module("opd.train", *given)
        assert full.returncode == 2 and "Traceback" not in full.stderr
        assert os.strerror(errno.ENOSPC) in full.stderr.strip().splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert train(composed(given)).state == "finished"
        folder = RunDir(next((disk / "main").iterdir()))
        assert folder.status().state == "finished" and [line["step"] for line in folder.metrics()] == [0, 1, 2, 3, 4]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


@pytest.mark.parametrize("both", [False, True])
def test_a_run_whose_output_nobody_reads_any_more_goes_on_to_its_end(both: bool, small_run: list[str], tmp_path: Path):
    """Real pipes, as of `python -m opd.train … | head -1` and `… 2>&1 | head -1`."""
    said, given = tmp_path / "said", [*small_run, f"paths.outputs={tmp_path}"]
    for suffix in (".out", ".err") if both else (".out",):
        os.mkfifo(said.with_suffix(suffix))
    process = forked(child.command, given, said)
    with said.with_suffix(".out").open() as reader, open(said.with_suffix(".err") if both else os.devnull):
        assert reader.readline().startswith("step 0/4")
    process.join(240)
    assert process.exitcode == 0 and run_dir(composed(given)).status().state == "finished"
    assert both or printed(said, ".err") == ""


@pytest.mark.parametrize("ensemble", ["hard_switch", "control_token"])
def test_a_run_of_several_teachers_is_examined_without_them(run, ensemble: str, tmp_path: Path, monkeypatch, capsys):
    from opd import cli, evaluate

    folder = run(LADDER, f"ensemble={ensemble}")
    monkeypatch.setattr(sys, "argv", ["evaluate", f"run={folder.path}", "evaluate.k=1", f"paths.outputs={tmp_path}"])
    cli.main(evaluate._main, evaluate.arguments)
    assert "evaluate/mean@1" in capsys.readouterr().out
