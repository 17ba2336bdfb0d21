"""A study's folder that somebody else has made: no command runs what lies in it, nor goes where its ledger leads."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from opd.errors import UserError
from opd.records.run_dir import RecordError
from sweeps import cancel, logs, prune, resubmit, snapshot, state, status, submit
from sweeps.cluster import Slurm
from sweeps.handover import hand_over
from sweeps.ledger import Ledger
from sweeps.task import Task
from tests.unit.sweeps.conftest import LOCAL, RUN, failed_study

SLURM = Slurm(
    "slurm", max_parallel=1, nodes=1, ranks_per_node=1, gpus_per_rank=0, cpus_per_rank=1, mem=None, time=20,
    signal_before=60, partition=None, account=None, qos=None, constraint=None, sbatch={}, setup=[], python=None,
    max_retries=0, max_requeues=0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch):
    """Whatever would start a program from a study's folder says so instead."""
    monkeypatch.setattr("sweeps.resubmit.hand_over", lambda *_: pytest.fail("it was handed over"))
    monkeypatch.setattr("sweeps.slurm.require", lambda: pytest.fail("SLURM was asked"))


def with_code(book: Ledger, text: str) -> str:
    """A copy of other code, as a submission would keep it; its hash."""
    folder = book.folder / "code" / "x"
    (folder / "opd").mkdir(parents=True)
    (folder / "opd" / "train.py").write_text(text)
    name = snapshot._digest(folder, [folder / "opd" / "train.py"])[:12]
    folder.rename(book.folder / "code" / name)
    return name


def test_other_code_that_a_study_keeps_is_not_run(tmp_path: Path, refused):
    code = with_code(Ledger(tmp_path / "main"), "import os; os.system('touch mark')")
    failed_study(tmp_path, code)
    said = refused(resubmit, f"paths.outputs={tmp_path}")
    assert f"one was of other code ({code}, and this is {snapshot.current().hash}); give --new-code" in said
    assert "--as-submitted for the copy in" in said


@pytest.mark.parametrize("change", ["edited", "renamed", "added", "cached", "linked", "cache linked", "removed"])
def test_kept_code_that_is_not_what_its_name_says_is_not_run(change: str, tmp_path: Path, refused):
    book = failed_study(tmp_path, snapshot.current().hash)
    folder = snapshot.take(snapshot.current(), book.folder / "code")
    room = folder / "opd" / "step"
    loop, cache = room / "loop.py", room / "__pycache__"
    cache.mkdir()
    (cache / "loop.pyc").write_bytes(b"\0")
    assert snapshot.kept(folder) == folder and not cache.exists(), "sources alone are held against the hash"
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
        assert "is not the code that was copied there" in refused(resubmit, f"paths.outputs={tmp_path}", *flag)


def test_a_new_submission_does_not_take_code_that_lies_there_for_its_own(tmp_path: Path):
    book, code = Ledger(tmp_path / "main"), snapshot.current()
    planted = book.folder / "code" / code.hash
    (planted / "opd").mkdir(parents=True)
    (planted / "opd" / "train.py").write_text("")
    with pytest.raises(UserError, match="is not the code that was copied there"):
        hand_over(book, LOCAL, "gamma", [(RUN, {})], code, 0)
    assert book.submissions() == [] and submit.hand_over is hand_over


@pytest.mark.parametrize(
    ("key", "value"), [("setup", ["touch mark"]), ("python", "/tmp/mine"), ("sbatch", {"export": "LD_PRELOAD=/x"})]
)
def test_commands_of_a_cluster_that_a_study_keeps_are_not_run(key: str, value: Any, tmp_path: Path, refused):
    book = failed_study(tmp_path, snapshot.current().hash, Slurm(**{**SLURM.__dict__, key: value}))
    snapshot.take(snapshot.current(), book.folder / "code")
    assert f"one runs commands of its own (cluster.{key} in" in refused(resubmit, f"paths.outputs={tmp_path}")


BREAK = "x'\ntouch mark\n'"


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, BREAK) for key in ("partition", "account", "qos", "constraint", "mem", "python")]
    + [("sbatch", {BREAK: 1}), ("sbatch", {"comment": BREAK})],
)
def test_an_option_that_a_study_keeps_adds_no_line_to_the_script(key: str, value: Any, tmp_path: Path, refused):
    book = failed_study(tmp_path, snapshot.current().hash)
    (book.submission_folder("one") / "cluster.json").write_text(json.dumps({**SLURM.__dict__, key: value}))
    snapshot.take(snapshot.current(), book.folder / "code")
    for flag in ([], ["--as-submitted"]):
        assert f"cluster.{key}" in refused(resubmit, f"paths.outputs={tmp_path}", *flag)


def test_no_variable_is_sent_to_servers_that_a_study_names(tmp_path: Path, refused):
    server = {"urls": [["http://elsewhere:8000"]], "api_key_env": "AWS_SECRET_ACCESS_KEY"}
    book = failed_study(tmp_path, snapshot.current().hash, config={"teacher": {"server": server}})
    snapshot.take(snapshot.current(), book.folder / "code")
    for flag in ([], ["--new-code"]):
        said = refused(resubmit, f"paths.outputs={tmp_path}", *flag)
        assert "sends the environment variable AWS_SECRET_ACCESS_KEY to servers" in said


def test_what_this_checkout_would_run_anyway_needs_no_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = []
    monkeypatch.setattr("sweeps.resubmit.hand_over", lambda *arguments: given.append(arguments) or "two")
    book = failed_study(tmp_path / "own", snapshot.current().hash)
    snapshot.take(snapshot.current(), book.folder / "code")
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


@pytest.mark.parametrize("command", [status, resubmit, cancel, prune, logs])
@pytest.mark.parametrize("event", EVENTS)
def test_a_ledger_leads_nowhere_else(event: str, command, tmp_path: Path, refused):
    book = failed_study(tmp_path)
    intent = {"submission": "two", "sweep": "s", "cluster": "local", "code": "c", "runs": [RUN], "portion": 1}
    book.append("intent", **(intent | EVENTS[event]))
    before = sorted(tmp_path.parent.rglob("*"))
    arguments = {cancel: ["study=main"], logs: [RUN]}.get(command, [])
    assert "line 3: has something else than it should (" in refused(command, *arguments, f"paths.outputs={tmp_path}")
    assert set(before) >= {file for file in tmp_path.parent.rglob("*") if file.name != "lock"}


@pytest.mark.parametrize(
    "more", [{"jobs": [["--user=root", 0, 1]]}, {"jobs": [["../../log", 0, 1]]}, {"jobs": [], "pid": "../self"}]
)
def test_jobs_of_a_ledger_are_numbers(more: dict[str, Any], tmp_path: Path):
    book = failed_study(tmp_path)
    book.append("submitted", **({"submission": "one", "pid": None, "host": None} | more))
    with pytest.raises(UserError, match="line 3: has something else than it should"):
        state.look(book)


def test_tasks_of_a_submission_lead_nowhere_else(tmp_path: Path):
    folder = failed_study(tmp_path).submission_folder("one")
    (tmp_path / f"{RUN}.yaml").write_text((folder / "configs" / f"{RUN}.yaml").read_text())
    away = os.path.relpath(tmp_path / RUN, folder / "configs")
    (folder / "tasks.json").write_text(json.dumps([away]))
    with pytest.raises(RecordError, match=r"tasks.json: does not list runs \('\.\./.*' is no name\)"):
        Task.read(folder, 0)


def test_a_task_names_the_variable_that_its_submission_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []
    monkeypatch.setattr("sweeps.task.Forked", lambda module, arguments: started.append(arguments))
    for name, server in (("a", {"api_key_env": "TEACHER_KEY"}), ("b", {"api_key_env": None}), ("c", None)):
        folder = failed_study(tmp_path / name, config={"teacher": {"server": server}}).submission_folder("one")
        Task.read(folder, 0).start()
    assert [arguments[1:] for arguments in started] == [["teacher.server.api_key_env=TEACHER_KEY"], [], []]
