"""Records of submissions that were damaged: what is wrong is said, and nothing is thrown away for it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from opd.errors import UserError
from sweeps import cancel, cluster, logs, resubmit, state, status, submit
from sweeps.handover import recover
from sweeps.ledger import Ledger
from tests.unit.sweeps.conftest import RUN, failed_study


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    """A study with one submission of one run, which has begun and failed."""
    return failed_study(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"event": "intent", "submission": "two"}', "line 3: has no 'sweep'; mend that line or put the file back"),
        ('{"event": "submitted"}', "line 3: has no 'submission'"),
        ('{"event": "submitted", "submission": "one", "jobs": 7}', "line 3: has something else than it should"),
        ('{"event": "cancelled", "submission": "two", "runs": []}', "(submission two was never begun)"),
    ],
)
@pytest.mark.parametrize("command", [status, resubmit, cancel])
def test_a_damaged_ledger_is_said_by_its_line(book: Ledger, refused, command, line: str, said: str):
    with open(book.file, "a") as file:
        file.write(line + "\n")
    arguments = ["study=main"] if command is cancel else []
    assert said in refused(command, *arguments, f"paths.outputs={book.study.parent}")


def test_a_ledger_that_is_a_folder_is_said(book: Ledger, refused):
    book.file.unlink()
    book.file.mkdir()
    assert str(book.file) in refused(status, f"paths.outputs={book.study.parent}")


def test_a_ledger_that_is_gone_costs_no_submission_that_has_begun(book: Ledger):
    book.file.unlink()
    with book.lock(), pytest.raises(UserError, match="knows nothing of submission one, whose runs have begun"):
        recover(book)
    assert (book.submission_folder("one") / "tasks.json").exists()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("cluster.json", "{", "cluster.json: Expecting property name"),
        ("cluster.json", '{"kind": "pbs"}', "cluster.kind='pbs': should be 'local' or 'slurm'"),
        (f"configs/{RUN}.yaml", "[]", f"{RUN}.yaml: holds no JSON object"),
        (f"configs/{RUN}.yaml", None, f"{RUN}.yaml: No such file or directory"),
    ],
)
def test_a_damaged_submission_is_not_resubmitted(book: Ledger, refused, file: str, content: str | None, said: str):
    path = book.submission_folder("one") / file
    path.unlink() if content is None else path.write_text(content)
    assert said in refused(resubmit, f"paths.outputs={book.study.parent}")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tasks.json", "", "tasks.json: cannot be read"),
        ("tasks.json", "[]", "tasks.json: has no run at place 0"),
        ("cluster.json", "{}", "tasks.json and cluster.json are not those of a submission"),
        (f"configs/{RUN}.yaml", "{}", "is not the config of a run"),
    ],
)
def test_a_task_of_a_damaged_submission_says_so_in_its_log(book: Ledger, file: str, content: str, said: str):
    folder = book.submission_folder("one")
    (folder / file).write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.task", str(folder), "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr


def test_damaged_attempts_of_one_run_hide_no_other(book: Ledger):
    (book.study / "mis-01234567-s1").mkdir()
    (book.submission_folder("one") / "attempts" / f"{RUN}.jsonl").write_text('{"event": "end"}\n')
    seen = {one.run: one for one in state.look(book).runs}
    assert re.search(r"a line has no '(status|verdict)'", seen[RUN].note or "")
    assert seen["mis-01234567-s1"].state == "pending"


def test_a_damaged_status_is_told_and_hides_no_other_run(book: Ledger):
    for run in (RUN, "mis-01234567-s1"):
        (book.study / run).mkdir()
        (book.study / run / "status.json").write_text('{"state": "dancing"}')
    found = state.look(book)
    assert len(found.runs) == 2 and all("'dancing' is no state" in trouble for trouble in found.troubles)


def test_code_of_a_submission_that_is_gone_is_said(book: Ledger, refused):
    said = refused(resubmit, f"paths.outputs={book.study.parent}")
    assert "code/c: is gone; give --new-code" in said


def test_a_cluster_of_its_own_that_is_damaged_is_said(refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text("kind: [slurm\n")
    monkeypatch.setattr(cluster, "CONF", tmp_path)
    assert "cluster=mine: mine.yaml cannot be read" in refused(submit, "+sweep=gamma", "cluster=mine")


def test_the_log_of_a_run_that_no_study_knows_is_said(book: Ledger, refused):
    assert "no run's id begins so" in refused(logs, "kl", f"paths.outputs={book.study.parent}")
