"""Ctrl-C at any moment: one sentence that is true, exit status 130, no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from opd.train import run_dir, train
from tests.forks import forked
from tests.integration import child
from tests.integration.conftest import composed

GRACEFUL = "opd: SIGINT: stopping after this step, or this batch of an evaluation, with a checkpoint"


def interrupted(arguments: list[str], said: Path, step: int, third: bool) -> None:
    """The command, which gets two Ctrl-C within a step, and a third while it ends."""
    from opd.records.run_dir import RunDir
    from opd.step import loop

    def stepping(run, number, original=loop.step):
        for _ in range(2 if number == step else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return original(run, number)

    def updating(self, original=RunDir.update_status, **changes):
        if third and changes.get("state") == "preempted":
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, **changes)

    loop.step, RunDir.update_status = stepping, updating
    child.command(arguments, said)


@pytest.mark.parametrize(
    ("step", "third", "says"),
    [
        (3, False, "opd: interrupted; the same command resumes from step 2"),
        pytest.param(1, False, "opd: interrupted; the same command starts again at step 1", marks=pytest.mark.apart),
        pytest.param(3, True, None, marks=pytest.mark.apart),
    ],
)
def test_a_second_ctrl_c_ends_at_once_and_says_what_is_kept(
    step: int, third: bool, says: str | None, small_run: list[str], tmp_path: Path
):
    given, said = [*small_run, f"paths.outputs={tmp_path}", "evaluate.at_start=false"], tmp_path / "said"
    process = forked(interrupted, given, said, step, third)
    process.join()
    lines = said.with_suffix(".err").read_text().splitlines()
    assert process.exitcode == 130 and lines == [GRACEFUL, *([] if says is None else [says])]
    folder = run_dir(composed(given))
    assert folder.status().state == ("running" if third else "preempted") and folder.status().step == step - 1
    assert train(composed(given)).state == "finished"


# Commands, and modules whose import is the moment of the Ctrl-C.
STARTS = [
    ("opd.train", "opd.errors"), ("opd.train", "hydra.main"), ("opd.train", "torch"), ("opd.train", "opd.step.loop"),
    ("opd.evaluate", "opd.errors"), ("opd.evaluate", "opd.step.assemble"),
    ("sweeps.submit", "opd.errors"), ("sweeps.status", "sweeps.state"), ("analysis.report", "pandas"),
]  # fmt: skip
FEW = {("opd.train", "torch"), ("opd.train", "opd.step.loop"), ("sweeps.submit", "opd.errors"), STARTS[-1]}


@pytest.mark.parametrize(
    ("module", "imported"), [pytest.param(*each, marks=[] if each in FEW else [pytest.mark.apart]) for each in STARTS]
)
def test_a_ctrl_c_while_a_command_starts(
    module: str, imported: str, small_run: list[str], models: Path, tmp_path: Path
):
    outputs = f"paths.outputs={tmp_path / 'outputs'}"
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "a" / "run" / "status.json").write_text("{}")
    arguments = {
        "opd.train": [*small_run, outputs],
        "opd.evaluate": [f"model={models / 'student'}", "scale=tiny", outputs],
        "sweeps.submit": ["+sweep=gamma", *small_run, outputs],
        "sweeps.status": [outputs],
        "analysis.report": [f"runs={tmp_path / 'a'}", f"out={tmp_path / 'out'}"],
    }[module]
    command = [sys.executable, "-X", "importtime", "-m", module, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.rpartition("|")[2].strip() == imported:
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
        status = process.wait(240)
    ours = [line for line in said.splitlines() if not line.startswith("import time:")]
    assert seen[-1].rpartition("|")[2].strip() == imported
    assert status == 130 and len(ours) <= 1, ours
    assert not (tmp_path / "outputs").exists()
