"""The commands with a scheduler of which they know only that it is an `Executor`."""

import json
from pathlib import Path

import pytest

from opd.errors import UserError
from opd.records.run_dir import State
from sweeps import cluster, executor, submit
from sweeps.executor import EXECUTORS
from sweeps.ledger import Ledger
from sweeps.run_state import Job
from tests.unit.sweeps.conftest import said, write_attempts, write_status
from tests.unit.sweeps.scripted import CONFIG, ScriptedExecutor


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedExecutor:
    """The scripted executor, added like any scheduler: a module, a line in the registry, a file in conf/cluster."""
    monkeypatch.setitem(EXECUTORS, "scripted", "tests.unit.sweeps.scripted.ScriptedExecutor")
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf" / "cluster" / "mine.yaml").write_text(CONFIG)
    monkeypatch.setattr(cluster, "CONF", tmp_path / "conf")
    found = executor.get("scripted")
    assert isinstance(found, ScriptedExecutor)
    for name, empty in {"jobs": {}, "names": {}, "calls": [], "down": False, "dies": False}.items():
        monkeypatch.setattr(found, name, empty)
    return found


@pytest.fixture
def sweep(tmp_path: Path) -> list[str]:
    return ["+sweep=gamma", "sweep.seeds=[0]", f"paths.outputs={tmp_path / 'outputs'}", "cluster=mine"]


def states(outputs: str) -> dict[str, str]:
    """Name → state."""
    return {run["name"]: run["state"] for run in map(json.loads, said("status", outputs, "--json").splitlines())}


def write(ledger: Ledger, index: int, state: State, verdict: str | None) -> None:
    """Write the records of a run in this state, and of its task, which has ended if there is a verdict."""
    submission = ledger.submissions()[-1]
    write_status(ledger.study / submission.runs[index], state)
    events = [{"event": "start"}] + ([{"event": "end", "status": 1, "verdict": verdict}] if verdict else [])
    write_attempts(submission.folder, submission.runs[index], events)


def test_a_sweep_is_submitted_watched_cancelled_and_resubmitted(
    scheduler: ScriptedExecutor, sweep: list[str], tmp_path: Path
):
    outputs, ledger = f"paths.outputs={tmp_path / 'outputs'}", Ledger(tmp_path / "outputs" / "main")
    planned = said("submit", *sweep, "cluster.queue=long", "--dry-run")
    assert "where      a script, queue long" in planned and not scheduler.calls

    assert "submitted 3 runs" in said("submit", *sweep)
    (first,) = ledger.submissions()
    assert first.jobs == [("1", 0, 2), ("2", 2, 1)] and first.cluster == "scripted"
    assert states(outputs) == {"mis": "queued", "gamma_0_1": "queued", "gamma_0_5": "queued"}
    assert scheduler.calls == ["query"], "one query for all submissions"
    assert "to do      0" in said("submit", *sweep)

    scheduler.jobs |= {"1_0": Job("active", "R", "n1"), "1_1": Job("active", "R", "n2"), "2_0": Job("timeout", "T")}
    write(ledger, 0, "running", None)
    write(ledger, 1, "failed", "failed")
    assert states(outputs) == {"mis": "running", "gamma_0_1": "failed", "gamma_0_5": "timeout"}
    assert "the script ended job 2_0 as T" in said("status", outputs)
    (first.folder / "logs" / "1.txt").write_text("")
    assert said("logs", first.runs[1], outputs, "--path").strip() == str(first.folder / "logs" / "1.txt")

    assert "ended 1 runs" in said("cancel", "study=main", outputs)
    assert states(outputs)["mis"] == "cancelled" and scheduler.jobs["1_0"].phase == "cancelled"

    assert "submitted 2 runs" in said("resubmit", outputs)
    assert ledger.submissions()[-1].runs == sorted(first.runs[1:])
    assert states(outputs) == {"mis": "cancelled", "gamma_0_1": "queued", "gamma_0_5": "queued"}
    write(ledger, 0, "finished", "finished")
    scheduler.jobs.clear()
    assert sorted(states(outputs).values()) == ["cancelled", "finished", "lost"]


def test_a_scheduler_that_does_not_answer_is_reported(
    scheduler: ScriptedExecutor, sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    outputs = f"paths.outputs={tmp_path / 'outputs'}"
    said("submit", *sweep)
    scheduler.down = True
    assert set(states(outputs).values()) == {"queued"}
    assert "warning: the script does not answer (it is down); states are from the records alone" in (
        capsys.readouterr().err
    )
    with pytest.raises(UserError, match=r"the script does not answer \(it is down\), and its jobs continue"):
        said("cancel", "study=main", outputs)


def test_an_interrupted_submission_is_recovered(scheduler: ScriptedExecutor, sweep: list[str], tmp_path: Path):
    ledger = Ledger(tmp_path / "outputs" / "main")
    scheduler.dies = True
    with pytest.raises(KeyboardInterrupt):
        submit.main(sweep)
    assert not ledger.submissions()[0].submitted
    scheduler.dies, scheduler.down = False, True
    with pytest.raises(UserError, match="was interrupted, and the script does not answer"):
        submit.main(sweep)
    scheduler.down = False
    assert "to do      1" in said("submit", *sweep)  # the first array was handed over, the second was not
    assert [one.jobs for one in ledger.submissions()] == [[("1", 0, 2)], [("2", 0, 1)]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["cluster.queue=other"], "cluster.queue='other': should be 'short' or 'long'"),
        (["cluster.ranks=0"], "cluster.ranks=0: should be greater than or equal to 1"),
        (["cluster.quue=long"], "cluster.quue: cluster=mine has no such key; did you mean cluster.queue?"),
        (["cluster.kind=other"], "cluster.kind='other': should be 'local' or 'slurm' or 'scripted'"),
    ],
)
def test_its_settings_are_checked(scheduler: ScriptedExecutor, arguments: list[str], sentence: str):
    with pytest.raises(UserError) as refused:
        cluster.load(["cluster=mine", *arguments])
    assert str(refused.value) == sentence
