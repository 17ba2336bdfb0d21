"""Studies as submissions leave them, and commands run in this process."""

import importlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from opd.records.run_dir import RunDir, State, Status
from sweeps import cli
from sweeps.executor import Settings
from sweeps.ledger import Ledger, write_submission
from sweeps.local import LocalSettings
from sweeps.slurm import SlurmSettings

RUN, RUNS = "mis-01234567-s0", ["mis-01234567-s0", "mis-01234567-s1"]
THEN = "2026-01-01T00:00:00+00:00"
LOCAL = LocalSettings("local", max_parallel=1, ranks=1, max_retries=0)
SLURM = SlurmSettings(
    "slurm", max_parallel=1, nodes=1, ranks_per_node=1, gpus_per_rank=0, cpus_per_rank=1, mem=None, time=20,
    signal_before=60, partition=None, account=None, qos=None, constraint=None, sbatch={}, setup=[], python=None,
    max_retries=0, max_requeues=0,
)  # fmt: skip


def write_status(folder: Path, state: State, step: int = 3, num_steps: int = 10, error: str | None = None) -> RunDir:
    """Write the status of a run on another machine."""
    run = RunDir(folder)
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_status(Status(state, step, num_steps, error, THEN, THEN, "elsewhere", None, 1))
    return run


def write_attempts(folder: Path, run: str, events: Sequence[dict]) -> None:
    """Write the events of a run's attempts into a submission's folder."""
    (folder / "attempts" / f"{run}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def submitted(
    ledger: Ledger,
    runs: list[str],
    name: str = "one",
    settings: Settings = LOCAL,
    code: str = "c",
    config: dict[str, Any] | None = None,
    jobs: Sequence[tuple[str, int, int]] = (),
) -> Path:
    """Record a submission as handed over, without a runner; its folder."""
    folder = ledger.submission_folder(name)
    write_submission(folder, vars(settings), runs, [config or {} for _ in runs], code)
    intent = {"sweep": "gamma", "cluster": settings.kind, "code": code, "runs": runs, "portion": len(runs)}
    ledger.append("intent", submission=name, **intent)
    host, pid = (None, None) if jobs else ("elsewhere", 1)
    ledger.append("submitted", submission=name, jobs=jobs, pid=pid, host=host)
    return folder


def failed_study(
    outputs: Path, code: str = "c", settings: Settings = LOCAL, config: dict[str, Any] | None = None
) -> Ledger:
    """The study `main` with one submission, `one`, of one run, which has started and failed."""
    ledger = Ledger(outputs / "main")
    config = {"paths": {"outputs": str(outputs)}, "study": "main"} | (config or {})
    folder = submitted(ledger, [RUN], "one", settings, code, config)
    write_attempts(folder, RUN, [{"event": "start"}, {"event": "end", "status": 1, "verdict": "failed"}])
    return ledger


def said(module: str, *arguments: str) -> str:
    """The output of `sweeps.<module>`, run in this process because most commands take longer to start than to run."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        importlib.import_module(f"sweeps.{module}").main(arguments)
    return printed.getvalue()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a command that must be refused with one sentence, and return it. A traceback fails the test."""

    def run(command: ModuleType, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.run(command.main)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.startswith("opd: ") and said.count("\n") == 1, said
        return said

    return run
