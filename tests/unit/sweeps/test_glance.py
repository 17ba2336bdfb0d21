"""Finished runs are read once; whatever changes is seen all the same."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opd.records.run_dir import RecordError, RunDir, Status
from sweeps import status
from sweeps.glance import Glances

RUN = "mis-01234567-s0"
THEN = "2026-01-01T00:00:00+00:00"


def write(study: Path, state: str, step: int = 4) -> RunDir:
    folder = RunDir(study / RUN)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_status(Status(state, step, 4, None, THEN, THEN, "n", None, 1))  # pyright: ignore[reportArgumentType]
    folder.metrics_file.write_text(
        '{"step": 3}\n{"step": 4, "evaluate/mean@8": 0.5, "loss": 1, "entropy/student": null}\n'
    )
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A study with a finished run that has been looked at."""
    write(tmp_path, "finished")
    glances = Glances(tmp_path)
    found = glances.status(RUN)
    assert found is not None and glances.metrics(RUN, found) == {"evaluate/mean@8": 0.5}
    glances.keep()
    return tmp_path


def test_a_finished_run_is_not_read_again(kept: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RunDir, "status", lambda _: pytest.fail("read again"))
    (kept / RUN / "metrics.jsonl").unlink()
    glances = Glances(kept)
    found = glances.status(RUN)
    assert found is not None and found.state == "finished" and glances.metrics(RUN, found) == {"evaluate/mean@8": 0.5}


@pytest.mark.parametrize("state", ["running", "failed", "finished"])
def test_a_status_that_was_written_anew_is_read(kept: Path, state: str):
    write(kept, state, step=3)
    found = Glances(kept).status(RUN)
    assert found is not None and (found.state, found.step) == (state, 3)


def test_a_run_that_is_not_finished_is_never_kept(tmp_path: Path):
    write(tmp_path, "running")
    glances = Glances(tmp_path)
    assert glances.status(RUN) is not None
    glances.keep()
    assert not (tmp_path / ".sweep").exists()


def test_a_run_that_is_gone_is_gone(kept: Path):
    (kept / RUN / "status.json").unlink()
    assert Glances(kept).status(RUN) is None


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({RUN: 1}), json.dumps({RUN: [[0, 0], {}, {}]})])
def test_what_was_kept_and_is_damaged_is_read_anew(kept: Path, content: str):
    (kept / ".sweep" / "finished.json").write_text(content)
    found = Glances(kept).status(RUN)
    assert found is not None and found.state == "finished"


def test_a_kept_entry_of_another_shape_is_read_anew(kept: Path):
    file = kept / ".sweep" / "finished.json"
    content = json.loads(file.read_text())
    content[RUN][1].pop("host")
    file.write_text(json.dumps(content))
    found = Glances(kept).status(RUN)
    assert found is not None and found.host == "n"


def test_a_status_that_cannot_be_read_is_an_error(tmp_path: Path):
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "status.json").write_text("{")
    with pytest.raises(RecordError):
        Glances(tmp_path).status(RUN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("{}", {}),
        ('{"a": 1}\n', {"a": 1}),
        ('{"a": 1}\n{"b": 2}\n{"torn', {"b": 2}),
        ("[1]\n", {}),
        ("\n", {}),
    ],
)
def test_the_last_whole_line_is_what_counts(tmp_path: Path, text: str, expected: dict):
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "metrics.jsonl").write_text(text)
    assert Glances(tmp_path).last(RUN) == expected


def test_a_long_table_is_cut_to_the_screen_with_what_runs_on_top(tmp_path: Path):
    from sweeps import state
    from sweeps.ledger import Ledger

    for seed in range(30):
        folder = RunDir(tmp_path / "main" / f"mis-01234567-s{seed}")
        folder.path.mkdir(parents=True)
        how = "running" if seed == 29 else "finished"
        folder.write_status(Status(how, 4, 4, None, THEN, THEN, "elsewhere", None, 1))
    seen = status.first_the_live(state.look(Ledger(tmp_path / "main")).runs)
    lines = status.table(seen, 12).splitlines()
    assert len(lines) == 11 and lines[1].startswith("mis-01234567-s29  running")
    assert "… and 23 more" in lines and lines[-1] == "30 runs: 1 running, 29 finished"
    assert len(status.table(seen, 34).splitlines()) == len(status.table(seen).splitlines()) == 33


def interruptible() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would these tests' processes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_watch_is_left_with_ctrl_c(tmp_path: Path):
    """In a terminal of its own: the screen is cleared for each table, and Ctrl-C ends it without a word."""
    write(tmp_path / "main", "finished")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "sweeps.status", "--watch", f"paths.outputs={tmp_path}"]
    watch = subprocess.Popen(command, stdout=theirs, stderr=theirs, preexec_fn=interruptible)
    os.close(theirs)
    said, limit = b"", time.monotonic() + 60
    while b"1 runs: 1 finished" not in said and time.monotonic() < limit:
        said += os.read(ours, 4096)
    watch.send_signal(signal.SIGINT)
    assert watch.wait(timeout=30) == 0
    assert said.startswith(b"\x1b[2J\x1b[H") and b"Traceback" not in said and b"interrupted" not in said
    os.close(ours)
