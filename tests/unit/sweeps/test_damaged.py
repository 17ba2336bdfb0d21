"""Damaged records of submissions are reported, and nothing is deleted because of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from opd.errors import UserError
from sweeps import cancel, cluster, executor, logs, resubmit, state, submit
from sweeps.ledger import Ledger
from sweeps.run_state import Job
from sweeps.submission import recover
from tests.unit.sweeps.conftest import RUN, failed_study, submitted
from tests.unit.sweeps.scripted import ScriptedExecutor, ScriptedSettings


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A study with one submission of one run, which has started and failed."""
    return failed_study(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"event": "intent", "submission": "two"}', "line 3: has no 'sweep'; repair that line or restore the file"),
        ('{"event": "submitted"}', "line 3: has no 'submission'"),
        ('{"event": "submitted", "submission": "one", "jobs": 7}', "line 3: jobs is 7; input should be a valid list"),
        ('{"event": "cancelled", "submission": "two", "runs": []}', "line 3: submission two has no intent"),
    ],
)
@pytest.mark.parametrize("command", [resubmit, cancel])
def test_a_damaged_ledger_is_reported_with_its_line(ledger: Ledger, refused, command, line: str, said: str):
    with open(ledger.file, "a") as file:
        file.write(line + "\n")
    arguments = ["study=main"] if command is cancel else []
    assert said in refused(command, *arguments, f"paths.outputs={ledger.study.parent}")
    found = state.read(ledger)
    assert [run.run for run in found.runs] == [RUN] and said.partition(";")[0] in found.warnings[0]


def test_a_folder_in_place_of_the_ledger_is_reported(ledger: Ledger, refused):
    ledger.file.unlink()
    ledger.file.mkdir()
    assert str(ledger.file) in state.read(ledger).warnings[0]
    assert str(ledger.file) in refused(resubmit, f"paths.outputs={ledger.study.parent}")


def test_without_a_ledger_what_a_scheduler_has_is_not_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(executor.EXECUTORS, "scripted", "tests.unit.sweeps.scripted.ScriptedExecutor")
    ledger, scheduler = Ledger(tmp_path / "main"), executor.get("scripted")
    folder = submitted(ledger, [RUN], settings=ScriptedSettings("scripted", 4, 1, 1, "short"))
    ledger.file.unlink()
    monkeypatch.setattr(ScriptedExecutor, "names", {"1": "one"})
    monkeypatch.setattr(ScriptedExecutor, "jobs", {"1_0": Job("waiting", "Q")})
    with ledger.lock(), pytest.raises(UserError, match="has no submission one, whose runs have started or are queued"):
        recover(ledger)
    monkeypatch.setattr(ScriptedExecutor, "down", True)
    with ledger.lock(), pytest.raises(UserError, match="the script does not answer"):
        recover(ledger)
    assert folder.exists() and scheduler is not None
    monkeypatch.setattr(ScriptedExecutor, "down", False)
    monkeypatch.setattr(ScriptedExecutor, "names", {})
    with ledger.lock():
        recover(ledger)
    assert not folder.exists(), "its command died before it was handed over"


def test_a_missing_ledger_does_not_delete_submissions_that_have_started(ledger: Ledger):
    ledger.file.unlink()
    with ledger.lock(), pytest.raises(UserError, match="has no submission one, whose runs have started or are queued"):
        recover(ledger)
    assert (ledger.submission_folder("one") / "tasks.json").exists()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("cluster.json", "{", "cluster.json: Expecting property name"),
        ("cluster.json", '{"kind": "pbs"}', "cluster.kind='pbs': should be 'local' or 'slurm'"),
        (f"configs/{RUN}.yaml", "[]", f"{RUN}.yaml: is not a JSON object"),
        (f"configs/{RUN}.yaml", None, f"{RUN}.yaml: No such file or directory"),
    ],
)
def test_a_damaged_submission_is_not_resubmitted(ledger: Ledger, refused, file: str, content: str | None, said: str):
    path = ledger.submission_folder("one") / file
    path.unlink() if content is None else path.write_text(content)
    assert said in refused(resubmit, f"paths.outputs={ledger.study.parent}")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tasks.json", "", "tasks.json: is not JSON"),
        ("tasks.json", "[]", "tasks.json: has no run at index 0"),
        ("cluster.json", "{}", "cluster.json: has no 'kind'"),
        (f"configs/{RUN}.yaml", "{}", "is not the config of a run"),
    ],
)
def test_a_task_of_a_damaged_submission_logs_one_sentence(ledger: Ledger, file: str, content: str, said: str):
    folder = ledger.submission_folder("one")
    (folder / file).write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.task", str(folder), "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr


def test_damaged_attempts_of_one_run_do_not_hide_another(ledger: Ledger):
    (ledger.study / "mis-01234567-s1").mkdir()
    (ledger.submission_folder("one") / "attempts" / f"{RUN}.jsonl").write_text('{"event": "end"}\n')
    seen = {one.run: one for one in state.read(ledger).runs}
    assert re.search(r"line 1: has no '(status|verdict)'", seen[RUN].note or "")
    assert seen["mis-01234567-s1"].state == "pending"


def test_a_damaged_status_is_a_warning_and_does_not_hide_other_runs(ledger: Ledger):
    for run in (RUN, "mis-01234567-s1"):
        (ledger.study / run).mkdir()
        (ledger.study / run / "status.json").write_text('{"state": "dancing"}')
    found = state.read(ledger)
    assert len(found.runs) == 2 and all("state is 'dancing'" in warning for warning in found.warnings)


def test_missing_code_of_a_submission_is_reported(ledger: Ledger, refused):
    said = refused(resubmit, f"paths.outputs={ledger.study.parent}")
    assert "code/c: does not exist; give --new-code" in said


def test_a_damaged_cluster_file_is_reported(refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text("kind: [slurm\n")
    monkeypatch.setattr(cluster, "CONF", tmp_path)
    assert "cluster=mine: mine.yaml cannot be read" in refused(submit, "+sweep=gamma", "cluster=mine")


def test_asking_for_the_log_of_an_unknown_run_is_reported(ledger: Ledger, refused):
    assert "no run's id starts with this" in refused(logs, "kl", f"paths.outputs={ledger.study.parent}")
