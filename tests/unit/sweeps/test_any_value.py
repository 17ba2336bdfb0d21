"""Whatever a record of one run holds, the commands show the other runs, and no terminal acts on it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from opd.errors import UserError
from opd.records.files import RecordError
from opd.records.run_dir import RunDir
from sweeps import logs, resubmit, state, status
from sweeps.ledger import Ledger
from tests.unit.sweeps.conftest import RUN, RUNS, said, submitted, write_attempts, write_status

ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e"
VALUES = [5, -1, 10**30, 1.5, "x", ESCAPE, None, True, [], ["x"], {}, {"a": [1]}]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A study with two runs, one finished and one failed, with metrics and attempts."""
    ledger = Ledger(tmp_path / "main")
    folder = submitted(ledger, RUNS)
    for run, how, verdict in zip(RUNS, ("finished", "failed"), ("finished", "failed"), strict=True):
        records = write_status(ledger.study / run, how, error="x" if how == "failed" else None)
        records.append_metrics({"step": 3, "divergence/reverse_kl": 0.5, "evaluate/mean@8": 0.25, "time/step": 2.0})
        write_attempts(folder, run, [{"event": "start"}, {"event": "end", "status": 0, "verdict": verdict}])
        (folder / "logs" / f"{run}.log").write_text(f"step 3 {ESCAPE}\n")
    return ledger


def files(ledger: Ledger) -> dict[str, Path]:
    folder, run = ledger.submission_folder("one"), RunDir(ledger.study / RUN)
    attempts = folder / "attempts" / f"{RUN}.jsonl"
    return {"status": run.status_file, "metrics": run.metrics_file, "attempts": attempts, "ledger": ledger.file}


def shown(ledger: Ledger, capsys: pytest.CaptureFixture) -> str:
    """What status and logs print, after the cache was filled too; resubmit may refuse."""
    where, printed = f"paths.outputs={ledger.study.parent}", ""
    for _ in range(2):
        printed += said("status", where)
    try:
        logs.main([RUNS[1], where])
    except SystemExit as ended:
        assert ended.code == 0
    except UserError as error:
        assert "has no log" in str(error)
    try:
        resubmit.main([where, "--dry-run"])
    except (UserError, RecordError) as error:
        assert "\n" not in str(error)
    captured = capsys.readouterr()
    return printed + captured.out + captured.err


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("name", ["status", "metrics", "attempts", "ledger"])
def test_any_value_in_a_record_of_one_run(ledger: Ledger, capsys: pytest.CaptureFixture, name: str, value: Any):
    file = files(ledger)[name]
    lines = [json.loads(line) for line in (file.read_text().splitlines() if name != "status" else [file.read_text()])]
    for at, line in enumerate(lines):
        for key in line:
            changed = [*lines[:at], {**line, key: value}, *lines[at + 1 :]]
            file.write_text("".join(json.dumps(each) + "\n" for each in changed))
            printed = shown(ledger, capsys)
            assert RUNS[1] in printed and not CONTROL.search(printed), (key, printed)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"[" * 20_000, b"9" * 5_000, b'{"step": ' + b"9" * 5_000 + b"}\n", b'"\\ud800"\n']
)
@pytest.mark.parametrize("name", ["status", "metrics", "attempts", "ledger", "cache"])
def test_any_bytes_in_a_record_of_one_run(ledger: Ledger, capsys: pytest.CaptureFixture, name: str, content: bytes):
    (files(ledger) | {"cache": ledger.folder / "finished.json"})[name].write_bytes(content)
    printed = shown(ledger, capsys)
    assert RUNS[1] in printed and not CONTROL.search(printed)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_any_value_in_the_cache_of_finished_runs(ledger: Ledger, value: Any):
    state.read(ledger, cache=(cache := status.StatusCache(ledger.study)))
    cache.save()
    content = json.loads((ledger.folder / "finished.json").read_text())
    stamp, recorded, metrics = content[RUN]
    for entry in (
        value,
        [stamp, value, metrics],
        [stamp, recorded, value],
        *([stamp, {**recorded, key: value}, metrics] for key in recorded),
        *([stamp, recorded, {**metrics, key: value}] for key in metrics),
    ):
        (ledger.folder / "finished.json").write_text(json.dumps({RUN: entry}))
        assert RUN in said("status", f"paths.outputs={ledger.study.parent}")
