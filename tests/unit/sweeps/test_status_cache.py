"""Finished runs are read once, and changes are noticed; the table and the watch of `sweeps.status`."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opd.records.files import RecordError
from opd.records.run_dir import RunDir, State
from sweeps import status
from sweeps.status_cache import StatusCache
from tests.unit.sweeps.conftest import RUN, write_status


def write(study: Path, state: State, step: int = 4) -> RunDir:
    folder = write_status(study / RUN, state, step, 4)
    folder.metrics_file.write_text(
        '{"step": 3}\n{"step": 4, "evaluate/mean@8": 0.5, "loss": 1, "entropy/student": null}\n'
    )
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A study with a finished run in its cache."""
    write(tmp_path, "finished")
    cache = StatusCache(tmp_path)
    found = cache.status(RUN)
    assert found is not None and cache.metrics(RUN, found) == {"evaluate/mean@8": 0.5}
    cache.save()
    return tmp_path


def test_a_finished_run_is_not_read_again(kept: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RunDir, "status", lambda _: pytest.fail("read again"))
    (kept / RUN / "metrics.jsonl").unlink()
    cache = StatusCache(kept)
    found = cache.status(RUN)
    assert found is not None and found.state == "finished" and cache.metrics(RUN, found) == {"evaluate/mean@8": 0.5}


@pytest.mark.parametrize("state", ["running", "failed", "finished"])
def test_a_changed_status_is_read_again(kept: Path, state: State):
    write(kept, state, step=3)
    found = StatusCache(kept).status(RUN)
    assert found is not None and (found.state, found.step) == (state, 3)


def test_an_unfinished_run_is_not_cached(tmp_path: Path):
    write(tmp_path, "running")
    cache = StatusCache(tmp_path)
    assert cache.status(RUN) is not None
    cache.save()
    assert not (tmp_path / ".sweep").exists()


def test_a_removed_status_is_not_taken_from_the_cache(kept: Path):
    (kept / RUN / "status.json").unlink()
    assert StatusCache(kept).status(RUN) is None


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({RUN: 1}), json.dumps({RUN: [[0, 0], {}, {}]})])
def test_a_damaged_cache_is_ignored(kept: Path, content: str):
    (kept / ".sweep" / "finished.json").write_text(content)
    found = StatusCache(kept).status(RUN)
    assert found is not None and found.state == "finished"


def test_a_cache_entry_of_another_version_is_ignored(kept: Path):
    file = kept / ".sweep" / "finished.json"
    content = json.loads(file.read_text())
    content[RUN][1].pop("host")
    file.write_text(json.dumps(content))
    found = StatusCache(kept).status(RUN)
    assert found is not None and found.host == "elsewhere"


def test_a_status_that_cannot_be_read_is_an_error(tmp_path: Path):
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "status.json").write_text("{")
    with pytest.raises(RecordError):
        StatusCache(tmp_path).status(RUN)


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
def test_the_last_complete_line_of_metrics_is_read(tmp_path: Path, text: str, expected: dict):
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "metrics.jsonl").write_text(text)
    assert StatusCache(tmp_path).last_metrics(RUN) == expected


def test_a_long_table_is_cut_to_the_screen_with_running_runs_first(tmp_path: Path):
    from sweeps import state
    from sweeps.ledger import Ledger

    for seed in range(30):
        write_status(tmp_path / "main" / f"mis-01234567-s{seed}", "running" if seed == 29 else "finished")
    seen = status.by_urgency(state.read(Ledger(tmp_path / "main")).runs)
    lines = status.table(seen, 12).splitlines()
    assert len(lines) == 11 and lines[1].startswith("mis-01234567-s29  running")
    assert "… and 23 more" in lines and lines[-1] == "30 runs: 1 running, 29 finished"
    assert len(status.table(seen, 34).splitlines()) == len(status.table(seen).splitlines()) == 33


def interruptible() -> None:
    """Restore Ctrl-C, which processes of a background shell ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_a_watch(tmp_path: Path):
    """In a pseudo-terminal: the screen is cleared for each table, and Ctrl-C ends the command silently."""
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
