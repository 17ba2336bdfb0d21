"""A study's folder from somebody else: no command runs its content, or follows names in its ledger elsewhere."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opd.errors import UserError
from opd.records.files import RecordError
from sweeps import cancel, logs, prune, resubmit, snapshot, state, status
from sweeps.ledger import Ledger
from sweeps.submission import submit_runs
from sweeps.task import Task
from tests.unit.sweeps.conftest import LOCAL, RUN, SLURM, failed_study


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch):
    """Fail the test if anything would be started from a study's folder."""
    monkeypatch.setattr("sweeps.submission.submit_runs", lambda *_: pytest.fail("it was handed over"))
    monkeypatch.setattr("sweeps.slurm_commands.max_array_size", lambda: pytest.fail("SLURM was asked"))


def with_code(ledger: Ledger, text: str) -> str:
    """Store other code in a study, as a submission would; its hash."""
    folder = ledger.folder / "code" / "x"
    (folder / "opd").mkdir(parents=True)
    (folder / "opd" / "train.py").write_text(text)
    name = snapshot._digest(folder, [folder / "opd" / "train.py"])[:12]
    folder.rename(ledger.folder / "code" / name)
    return name


def test_other_code_in_a_study_is_not_run(tmp_path: Path, refused):
    code = with_code(Ledger(tmp_path / "main"), "import os; os.system('touch mark')")
    failed_study(tmp_path, code)
    said = refused(resubmit, f"paths.outputs={tmp_path}")
    assert f"one ran other code ({code}, and this is {snapshot.current().hash}); give --new-code" in said
    assert "--as-submitted for the copy in" in said


@pytest.mark.parametrize("change", ["edited", "renamed", "added", "cached", "linked", "cache linked", "removed"])
def test_copied_code_that_was_changed_is_not_run(change: str, tmp_path: Path, refused):
    ledger = failed_study(tmp_path, snapshot.current().hash)
    folder = snapshot.take(snapshot.current(), ledger.folder / "code")
    room = folder / "opd" / "step"
    loop, cache = room / "loop.py", room / "__pycache__"
    cache.mkdir()
    (cache / "loop.pyc").write_bytes(b"\0")
    assert snapshot.verify(folder) == folder and not cache.exists(), "caches are not part of the hash"
    if change == "edited":
        loop.write_text(loop.read_text() + "\n")
    elif change == "renamed":
        loop.rename(loop.with_name("loop_.py"))
    elif change == "added":
        (folder / "sitecustomize.py").write_text("")
    elif change == "cached":
        (room / "loop.abi3.so").write_bytes(b"\0")
    elif change == "linked":
        shutil.copy(loop, tmp_path / "loop.py")
        loop.unlink()
        loop.symlink_to(tmp_path / "loop.py")
    elif change == "cache linked":
        (tmp_path / "elsewhere").mkdir()
        cache.symlink_to(tmp_path / "elsewhere")
    else:
        loop.unlink()
    for flag in ([], ["--as-submitted"]):
        assert "has changed since the code was copied there" in refused(resubmit, f"paths.outputs={tmp_path}", *flag)


def test_a_new_submission_does_not_use_planted_code(tmp_path: Path):
    ledger, code = Ledger(tmp_path / "main"), snapshot.current()
    planted = ledger.folder / "code" / code.hash
    (planted / "opd").mkdir(parents=True)
    (planted / "opd" / "train.py").write_text("")
    with pytest.raises(UserError, match="has changed since the code was copied there"):
        submit_runs(ledger, LOCAL, "gamma", [(RUN, {})], code, 0)
    assert ledger.submissions() == []


@pytest.mark.parametrize(
    ("key", "value"), [("setup", ["touch mark"]), ("python", "/tmp/mine"), ("sbatch", {"export": "LD_PRELOAD=/x"})]
)
def test_commands_in_a_studys_recorded_settings_are_not_run(key: str, value: Any, tmp_path: Path, refused):
    ledger = failed_study(tmp_path, snapshot.current().hash, replace(SLURM, **{key: value}))
    snapshot.take(snapshot.current(), ledger.folder / "code")
    assert f"one runs commands of its own (cluster.{key} in" in refused(resubmit, f"paths.outputs={tmp_path}")


BREAK = "x'\ntouch mark\n'"


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, BREAK) for key in ("partition", "account", "qos", "constraint", "mem", "python")]
    + [("sbatch", {BREAK: 1}), ("sbatch", {"comment": BREAK})],
)
def test_a_recorded_option_cannot_add_a_line_to_the_script(key: str, value: Any, tmp_path: Path, refused):
    ledger = failed_study(tmp_path, snapshot.current().hash)
    (ledger.submission_folder("one") / "cluster.json").write_text(json.dumps({**SLURM.__dict__, key: value}))
    snapshot.take(snapshot.current(), ledger.folder / "code")
    for flag in ([], ["--as-submitted"]):
        assert f"cluster.{key}" in refused(resubmit, f"paths.outputs={tmp_path}", *flag)


def test_no_variable_is_sent_to_servers_named_by_a_study(tmp_path: Path, refused):
    server = {"urls": [["http://elsewhere:8000"]], "api_key_env": "AWS_SECRET_ACCESS_KEY"}
    ledger = failed_study(tmp_path, snapshot.current().hash, config={"teacher": {"server": server}})
    snapshot.take(snapshot.current(), ledger.folder / "code")
    for flag in ([], ["--new-code"]):
        said = refused(resubmit, f"paths.outputs={tmp_path}", *flag)
        assert "sends the environment variable AWS_SECRET_ACCESS_KEY to servers" in said


def test_the_code_of_this_checkout_needs_no_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = []
    monkeypatch.setattr("sweeps.submission.submit_runs", lambda *arguments: given.append(arguments) or "two")
    ledger = failed_study(tmp_path / "own", snapshot.current().hash)
    snapshot.take(snapshot.current(), ledger.folder / "code")
    resubmit.main([f"paths.outputs={tmp_path / 'own'}"])
    other = with_code(Ledger(tmp_path / "other" / "main"), "")
    failed_study(tmp_path / "other", other)
    resubmit.main([f"paths.outputs={tmp_path / 'other'}", "--as-submitted"])
    assert [code.hash for *_, code, _ in given] == [snapshot.current().hash, other]


EVENTS: dict[str, dict[str, Any]] = {
    "a run elsewhere": {"runs": ["../../other/mis-01234567-s0"]},
    "a run that is an option": {"runs": ["-n"]},
    "a submission elsewhere": {"submission": "../two"},
    "code elsewhere": {"code": "../../code"},
}


@pytest.mark.parametrize("event", EVENTS)
def test_names_in_a_ledger_cannot_lead_elsewhere(event: str, tmp_path: Path, refused):
    ledger = failed_study(tmp_path)
    intent = {"submission": "two", "sweep": "s", "cluster": "local", "code": "c", "runs": [RUN], "portion": 1}
    ledger.append("intent", **(intent | EVENTS[event]))
    before = sorted(tmp_path.parent.rglob("*"))
    for command, arguments in ((resubmit, []), (cancel, ["study=main"])):
        said = refused(command, *arguments, f"paths.outputs={tmp_path}")
        assert re.search("line 3: .* is .*; string should match pattern", said)
    for command in (status, prune):
        command.main([f"paths.outputs={tmp_path}"])
    with pytest.raises(UserError, match="has no log"):
        logs.main([RUN, f"paths.outputs={tmp_path}"])
    assert [run.run for run in state.read(ledger).runs] == [RUN]
    assert set(before) >= {file for file in tmp_path.parent.rglob("*") if not file.name.endswith("lock")}


@pytest.mark.parametrize(
    "more", [{"jobs": [["--user=root", 0, 1]]}, {"jobs": [["../../log", 0, 1]]}, {"jobs": [], "pid": "../self"}]
)
def test_jobs_in_a_ledger_are_numbers(more: dict[str, Any], tmp_path: Path):
    ledger = failed_study(tmp_path)
    ledger.append("submitted", **({"submission": "one", "pid": None, "host": None} | more))
    with pytest.raises(UserError, match=r"line 3: (jobs|pid).* is .*; "):
        ledger.submissions()


def test_tasks_of_a_submission_cannot_lead_elsewhere(tmp_path: Path):
    folder = failed_study(tmp_path).submission_folder("one")
    (tmp_path / f"{RUN}.yaml").write_text((folder / "configs" / f"{RUN}.yaml").read_text())
    away = os.path.relpath(tmp_path / RUN, folder / "configs")
    (folder / "tasks.json").write_text(json.dumps([away]))
    with pytest.raises(RecordError, match=r"tasks.json: runs\.0 is '\.\./.*'; string should match pattern"):
        Task.read(folder, 0)


def test_a_task_names_the_variable_that_its_submission_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []
    monkeypatch.setattr("sweeps.local.Forked", lambda module, arguments: started.append(arguments))
    for name, server in (("a", {"api_key_env": "TEACHER_KEY"}), ("b", {"api_key_env": None}), ("c", None)):
        folder = failed_study(tmp_path / name, config={"teacher": {"server": server}}).submission_folder("one")
        Task.read(folder, 0).start()
    assert [arguments[1:] for arguments in started] == [["teacher.server.api_key_env=TEACHER_KEY"], [], []]
