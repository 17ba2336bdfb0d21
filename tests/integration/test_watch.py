"""A run that is watched: a real terminal, real wandb without a network, a real trace; and the loss of a tracker."""

import gzip
import importlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opd.check.config import as_dict
from opd.records.run_dir import RunDir, find_runs
from opd.train import run_dir, train
from opd.watch.tracked import tracked_id
from tests.forks import run_module
from tests.integration.conftest import composed, once_told

LEAN = ["evaluate.sources.arithmetic.num=2", "checkpoint.keep=1"]


def entries(content: bytes) -> Iterator[bytes]:
    """The records of wandb's offline file, which is LevelDB's log after a header of seven bytes: blocks of 32 KiB, in
    them parts of (checksum 4, length 2, kind 1, data); a part is whole (1), or the first, a middle or the last (4).
    """
    place, entry = 7, b""
    while place + 7 <= len(content):
        if (rest := -place % 32768) < 7 and rest:
            place += rest
        length, kind = struct.unpack_from("<HB", content, place + 4)
        entry += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield entry
            entry = b""


def offline_files(folder: RunDir) -> list[Path]:
    """wandb's own files of a run, in order, when its service has written all it has: it flushes them as it ends."""
    import wandb

    wandb.teardown()
    return sorted(folder.path.glob("wandb/offline-run-*/*.wandb"))


def logged(folder: RunDir) -> list[dict[str, Any]]:
    """What wandb holds of a run: a row a call, read back from its own offline files in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for file in offline_files(folder):
        for entry in entries(file.read_bytes()):
            record = Record()
            record.ParseFromString(entry)
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


@pytest.fixture(scope="module")
def watched(small_run: list[str], tmp_path_factory: pytest.TempPathFactory):
    """A run with everything on."""
    outputs = tmp_path_factory.mktemp("watched")
    knobs = ["tracker=wandb", "tracker.mode=offline", "tracker.tags=[a,b]", "rollouts.every=2", "profile=true"]
    config = composed([*small_run, *LEAN, *knobs, f"paths.outputs={outputs}"])
    assert train(config).state == "finished"
    return config, run_dir(config)


def test_wandb_has_what_the_records_have_by_the_same_names(watched):
    _, folder = watched
    rows = {row["step"]: row for row in logged(folder) if "rollouts" not in row}
    lines = {line["step"]: line for line in folder.metrics()}
    assert rows.keys() == lines.keys() == {0, 1, 2, 3, 4}
    for step, line in lines.items():
        theirs = {name: value for name, value in rows[step].items() if not name.startswith("_")}
        assert theirs.keys() == line.keys()
        for name, value in line.items():
            assert theirs[name] == (pytest.approx(value) if value is not None else "NaN")


def test_pages_of_rollouts_are_in_the_run_directory_and_with_wandb(watched):
    _, folder = watched
    assert list(folder.pages()) == [2, 4]
    text = folder.page_file(4).read_text()
    assert text.count("<article>") == 8 and 'title="' in text
    kept = sorted(folder.path.glob("wandb/offline-run-*/files/media/html/rollouts_*.html"))
    assert [file.read_text() for file in kept] == [file.read_text() for file in folder.pages().values()]


def test_what_wandb_keeps_inside_a_run_is_no_run(watched):
    _, folder = watched
    assert [found.path for found in find_runs(folder.path.parent)] == [folder.path]


def test_a_trace_has_the_stages_of_two_steps(watched):
    _, folder = watched
    with gzip.open(folder.trace_file(0)) as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name") for event in events]
    for stage in ("teacher", "backward", "optimizer"):
        assert {event["cat"] for event in events if event.get("name") == stage} == {"user_annotation"}
    assert names.count("backward") == 2 and any(str(name).startswith("aten::") for name in names)


def test_a_line_has_speed_and_memory(watched):
    _, folder = watched
    for line in folder.metrics()[1:]:
        stages = sum(line[f"time/{stage}"] for stage in ("rollout", "teacher", "student", "backward", "optimizer"))
        assert stages <= line["time/step"]
        assert line["throughput/tokens_per_second"] == pytest.approx(line["response/tokens"] / line["time/step"])
        assert line["throughput/model_tflops"] > 0 and line["memory/peak_gb"] > 0.05
        assert "throughput/mfu" not in line


def test_a_run_that_goes_on_is_the_same_run_to_wandb_and_repeats_no_step_backwards(small_run, tmp_path: Path):
    """Killed after a later step than its last checkpoint, it logs those steps again; their axis is `step`."""
    knobs = ["tracker=wandb", "tracker.mode=offline", "checkpoint.every=2", f"paths.outputs={tmp_path}"]
    config = composed([*small_run, *LEAN, *knobs])
    folder = run_dir(config)

    class Killed(BaseException): ...

    def killed() -> None:
        raise Killed

    with pytest.raises(Killed), once_told(3, killed):
        train(config)
    assert train(config).state == "finished"
    steps = [row["step"] for row in logged(folder)]
    assert steps == [0, 1, 2, 3, 3, 4]
    assert [file.name for file in offline_files(folder)] == [f"run-{tracked_id(as_dict(config))}.wandb"] * 2


def test_a_run_whose_tracker_dies_goes_on(
    small_run, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Nor does anything else in its process mind: wandb looks on when a library that it knows is imported."""
    config = composed(
        [*small_run, *LEAN, "tracker=wandb", "tracker.mode=offline", "rollouts.every=1", f"paths.outputs={tmp_path}"]
    )
    killed: list[int] = []

    def kill() -> None:
        for pid in children(os.getpid(), "wandb-core"):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        time.sleep(0.5)

    with once_told(1, kill):
        assert train(config).state == "finished"
    assert len(killed) == 1
    said = capfd.readouterr().err
    assert said.count("opd: warning: tracker: wandb is lost") == 1
    assert [line["step"] for line in run_dir(config).metrics()] == [0, 1, 2, 3, 4]
    (tmp_path / "fastai.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fastai", raising=False)
    importlib.import_module("fastai")


@pytest.mark.apart
def test_a_command_whose_tracker_dies_ends_well_with_one_line_of_warning(small_run, tmp_path: Path):
    long = ["num_steps=60", "epochs=12", "evaluate.every=30", "checkpoint.every=30"]
    knobs = ["tracker=wandb", "tracker.mode=offline", f"paths.outputs={tmp_path}"]
    run = subprocess.Popen(
        [sys.executable, "-m", "opd.train", *small_run, *LEAN, *long, *knobs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert any(line.startswith("step  1/60") for line in run.stdout)
    run.send_signal(signal.SIGSTOP)
    (service,) = children(run.pid, "wandb-core")
    os.kill(service, signal.SIGKILL)
    run.send_signal(signal.SIGCONT)
    said, warned = run.communicate(timeout=240)
    assert run.returncode == 0 and "step 60/60" in said
    warnings = [line for line in warned.splitlines() if "model shards" not in line]
    assert len(warnings) == 1 and warnings[0].startswith("opd: warning: tracker: wandb is lost"), warned


def children(pid: int, name: str) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in found if name in Path(f"/proc/{each}/cmdline").read_text()]


def in_terminal(command: list[str]) -> tuple[int, str]:
    """Runs a command whose stdin, stdout and stderr are a terminal 140 columns wide; → (status, what it wrote)."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm", "COLUMNS": "140", "LINES": "30"}
        os.execv(command[0], command)
    written, end = b"", time.monotonic() + 240
    while time.monotonic() < end:
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                written += os.read(terminal, 65536)
            except OSError:  # the child has closed its side
                break
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    return status, written.decode()


@pytest.mark.apart
def test_a_terminal_shows_a_live_line_and_the_evaluated_steps(small_run, tmp_path: Path):
    long = ["num_steps=60", "epochs=12", "evaluate.every=30"]  # the line is drawn anew four times a second
    run = [sys.executable, "-m", "opd.train", *small_run, *LEAN, *long, f"paths.outputs={tmp_path}"]
    status, written = in_terminal(run)
    assert status == 0, written
    text = re.sub(r"[\r\n]+", "\n", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written))
    assert re.search(
        r"step 60/60  reverse_kl -?\d\.\d{4}  mean@2 \d+\.\d %  [\d,]+ tokens/s 0:00:00 left  done", text
    ), text
    assert re.search(r"[\d,]+ tokens/s \d:\d\d:\d\d left  (rollout|teacher|student|backward|optimizer|sampling)", text)
    assert re.findall(r"^step +(\d+)/60 .*mean@2 .* best@2", text, re.M) == ["0", "30", "60"]
    assert re.findall(r"^step +(\d+)/60 .*grad_norm", text, re.M) == ["30", "60"]  # others are in the live line alone


def test_without_a_terminal_every_step_is_a_plain_line(small_run, tmp_path: Path):
    done = run_module("opd.train", *small_run, *LEAN, f"paths.outputs={tmp_path}")
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\r" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["0/4", "1/4", "2/4", "3/4", "4/4"]
    assert all(re.search(r"reverse_kl .* grad_norm .* s  [\d,]+ tokens/s", line) for line in lines[1:])
