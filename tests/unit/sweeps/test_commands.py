"""What the commands refuse, each in one sentence; settings of a cluster; verdicts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import study
from opd.errors import UserError
from opd.records.run_dir import find_runs
from sweeps import cancel, cluster, compose, logs, prune, resubmit, status, submit
from sweeps.ledger import Ledger
from sweeps.plan import plan
from sweeps.snapshot import Code
from sweeps.submission import check_same_code, recover
from sweeps.task import Task, verdict
from tests.unit.analysis.fake_runs import Fake, write_run
from tests.unit.sweeps.conftest import RUNS, write_status


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cluster=nonsense"], "cluster=nonsense: there is no such cluster; conf/cluster has local, slurm"),
        (["cluster.max_paralel=2"], "cluster.max_paralel: cluster=local has no such key; did you mean clus"),
        (["cluster.max_parallel=0"], "cluster.max_parallel=0: should be greater than or equal to 1"),
        (["cluster.max_parallel=two"], "cluster.max_parallel='two': should be a valid integer"),
        (["cluster.ranks=null"], "cluster.ranks=None: should be a valid integer"),
        (["cluster.kind=pbs"], "cluster.kind='pbs': should be 'local' or 'slurm'"),
        (["cluster.partition=gpu"], "cluster.partition: cluster=local has no such key"),
        (["cluster=slurm", "cluster.time=24:00:00"], "cluster.time='24:00:00': should be a valid integer"),
        (["cluster=slurm", "cluster.signal_before=90000"], "cluster.signal_before=90000: must be less than"),
        (["cluster=slurm", "cluster.gpus_per_rank=8"], "cluster.gpus_per_rank=8: a rank uses one GPU"),
        (["cluster=slurm", "cluster.sbatch={array:1}"], "cluster.sbatch.array: the submission sets this itself"),
        (["cluster=slurm", "cluster.sbatch={time:5}"], "cluster.sbatch.time: the submission sets this itself; set"),
        (["cluster=slurm", "cluster.setup=module"], "cluster.setup='module': should be a valid array"),
        (["cluster=local,slurm"], "cluster=local,slurm: gives several values, but a submission goes to one cluster"),
        (["cluster.max_parallel=1,2"], "cluster.max_parallel=1,2: gives several values"),
        (["~cluster.ranks"], "~cluster.ranks: a cluster's settings cannot be removed; give the key a value"),
        (["cluster="], "cluster=: there is no such cluster"),
        (["cluster"], "cluster: cannot be read; give KEY=VALUE"),
        (["cluster=slurm", "cluster.time=0"], "cluster.time=0: should be greater than or equal to 1"),
        (["cluster=slurm", 'cluster.partition="gpu\n#SBATCH --uid=0"'], "should match pattern"),
        (["cluster=slurm", f"cluster.setup=['export HF_TOKEN=hf_{'a' * 34}']"], "cluster.setup.0: looks like a Hugg"),
        (["cluster=slurm", "cluster.sbatch=x"], "cluster.sbatch='x': should be an object"),
    ],
)  # fmt: skip
def test_wrong_settings_of_a_cluster_are_refused_in_one_sentence(arguments: list[str], said: str):
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        cluster.load(arguments)
    assert "\n" not in str(refused.value)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A study with two finished runs."""
    for run in RUNS:
        write_status(tmp_path / "main" / run, "finished")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (
            submit,
            ["--dry-rum"],
            "--dry-rum: is not a flag of this command; the flags are --dry-run, --new-code, --help",
        ),
        (submit, [], "sweep: none is chosen; choose one with +sweep=NAME: calibration, "),
        (status, ["study=nonsense"], "study=nonsense: there is no such study in"),
        (status, ["state=done"], "state=done: there is no such state; there are queued, running"),
        (status, ["stat=failed"], "stat=failed: is not an argument of this command; give study=…, paths.outputs=…"),
        (status, ["name=kl_*"], "name=kl_*: no run matches"),
        (status, ["--wach"], "--wach: is not a flag of this command"),
        (status, ["seed=zero"], "seed=zero: is not a seed; give whole numbers, as in seed=0,1"),
        (status, ["study="], "contains no study"),
        (status, ["study=../main"], "study=../main: there is no such study in"),
        (resubmit, ["cluster=nonsense"], "cluster=nonsense: there is no such cluster"),
        (resubmit, ["run=kl"], "run=kl state=failed,lost,timeout: no run matches"),
        (cancel, ["study=main", "run=kl"], "run=kl: no run matches"),
        (cancel, ["study=other"], "study=other: there is no such study in"),
        (prune, ["state=failed"], "state=failed: is not an argument of this command"),
        (resubmit, ["state=finished"], "state=finished: such runs cannot be resubmitted"),
        (resubmit, ["seed=7"], "seed=7 state=failed,lost,timeout: no run matches"),
        (cancel, [], "study: is missing; name the study"),
        (logs, [], "give one run, by its id or the start of it"),
        (logs, ["mis-0"], "mis-0: matches 2 runs, mis-01234567-s0 and mis-01234567-s1 among them; give more of it"),
        (logs, ["nonsense"], "nonsense: no run's id starts with this"),
        (logs, ["mis-01234567-s0"], "mis-01234567-s0: has no log; it has not started, or was not submitted by a sweep"),
        (logs, ["mis-01234567-s0", "lines=all"], "lines=all: should be a number of lines"),
        (prune, ["nonsense"], "nonsense: is not an argument of this command"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(command, arguments, said: str, outputs: Path):
    where = [f"paths.outputs={outputs}"] if command is not submit else []
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        command.main([*arguments, *where])
    assert "\n" not in str(refused.value)


def test_runs_that_stand_in_exports_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """An evaluated run of another study, by its id; one whose export says that it did not finish is to do."""
    plain = ["+sweep=base", "sweep.name=mine", "sweep.grid=[{+experiment:[mis]}]", f"paths.outputs={tmp_path}"]
    with compose.composer() as composer:
        planned = plan(composer, plain, ranks=1)
    for run in planned.runs:
        state = "finished" if run.config["seed"] else "running"
        fake = Fake(name="mis", seed=run.config["seed"], config=run.config, state=state, num_steps=2, every=2)
        write_run(tmp_path / "runs", fake)
    assert {run.path.name for run in find_runs(tmp_path / "runs")} == {run.id for run in planned.runs}
    study.write_study(tmp_path / "runs", tmp_path / "exports" / "one")
    submit.main([*plain, f"sweep.exports=[{tmp_path}/exports]", "--dry-run"])
    said = capsys.readouterr().out
    assert f"exported   2, whose results stand in {tmp_path}/exports" in said and "to do      1" in said
    submit.main([*plain, "--dry-run"])
    said = capsys.readouterr().out
    assert "exported" not in said and "to do      3" in said


@pytest.mark.parametrize("damage", ["holds no exported study; make one", "one/runs.parquet: is not a readable Parquet"])
def test_exports_that_are_none_or_damaged_are_refused_in_one_sentence(tmp_path: Path, damage: str):
    if damage.startswith("one"):
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "runs.parquet").write_bytes(b"?")
    with pytest.raises(UserError, match=re.escape(f"sweep.exports: {tmp_path}")) as refused:
        submit.main(["+sweep=gamma", f"sweep.exports=[{tmp_path}]", "--dry-run"])
    assert damage in str(refused.value) and "\n" not in str(refused.value)


def test_missing_outputs_are_reported(tmp_path: Path):
    for nowhere in (tmp_path / "nowhere", ""):
        with pytest.raises(UserError, match="there is no such folder"):
            status.main([f"paths.outputs={nowhere}"])


def test_missing_slurm_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="cluster=slurm: sbatch is not installed here; submit from a login node"):
        submit.main(["+sweep=gamma", "cluster=slurm"])


def test_outputs_that_are_a_file_are_reported_without_a_traceback(tmp_path: Path):
    (tmp_path / "outputs").write_text("")
    command = [sys.executable, "-m", "sweeps.cancel", "study=main", f"paths.outputs={tmp_path / 'outputs'}"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_other_code_is_refused(tmp_path: Path):
    ledger = Ledger(tmp_path / "main")
    ledger.folder.mkdir(parents=True)
    ledger.append("intent", submission="a", sweep="s", cluster="local", code="old", runs=["r"], portion=1)
    with pytest.raises(UserError, match="study=main: its last submission, a, ran other code"):
        check_same_code(ledger, Code("new", None, None))
    check_same_code(ledger, Code("old", None, None))


def test_a_submission_that_was_never_handed_over_is_abandoned(tmp_path: Path):
    ledger = Ledger(tmp_path / "main")
    (ledger.submission_folder("unsaid")).mkdir(parents=True)
    (ledger.submission_folder("said")).mkdir(parents=True)
    ledger.append("intent", submission="said", sweep="s", cluster="local", code="c", runs=["r"], portion=1)
    with open(ledger.file, "a") as file:
        file.write('{"event": "submitted", "submis')  # the writer died here
    recover(ledger)
    (one,) = ledger.submissions()
    assert one.abandoned == "its command died before it was handed over"
    assert not ledger.submission_folder("unsaid").exists() and ledger.submission_folder("said").exists()


@pytest.fixture
def task(tmp_path: Path) -> Task:
    from opd.records.run_dir import RunDir

    (tmp_path / "attempts").mkdir()
    settings = {"kind": "slurm", "max_retries": 2, "max_requeues": 2}
    return Task(tmp_path, "r-01234567-s0", tmp_path / "c", RunDir(tmp_path / "run"), settings, None)


@pytest.mark.parametrize(
    ("status_code", "state", "outside", "progress", "past", "expected"),
    [
        (143, "failed", False, False, [], "refused"),
        (0, "finished", False, True, [], "finished"),
        (0, "finished", True, True, [], "finished"),
        (75, "preempted", False, True, [], "requeue"),
        (75, "preempted", False, True, ["requeue"] * 2, "left"),
        (75, "preempted", True, True, [], "left"),
        (2, "failed", False, False, [], "refused"),
        (137, "failed", False, False, [], "retry"),
        (-9, "running", False, False, [], "retry"),
        (-9, "running", False, False, ["retry"] * 2, "failed"),
        (1, "failed", False, False, [], "failed"),
        (1, "failed", False, True, [], "retry"),
        (1, "running", False, False, [], "retry"),
    ],
)
def test_the_verdict_on_an_attempt(task: Task, status_code, state, outside, progress, past, expected):
    error = "name=x: is wrong" if state == "failed" and status_code == 143 else None
    write_status(task.folder.path, state, error=error)
    for one in past:
        task.record("end", status=0, verdict=one, step=0)
    assert verdict(task, status_code, terminated=outside, progress=progress) == expected
