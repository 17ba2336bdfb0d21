"""Damage to any file of a run: the same command, an evaluation and the report go on or say one sentence, and what they
compute is right.

`OPD_DAMAGES=200 python -m pytest tests/integration/test_damaged_run.py` tries as many; some are tried always.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from analysis.report import Arguments, write_report
from benchmarks.damage import EVERY
from opd.records.run_dir import RunDir
from opd.train import train
from tests.forks import forked
from tests.integration import child
from tests.integration.conftest import composed
from tests.integration.test_resume import content, only_run, spawn

NUMBER = int(os.environ.get("OPD_DAMAGES", "8"))


@pytest.fixture(scope="module")
def stopped(small_run, tmp_path_factory) -> tuple[Path, dict[str, object], list[str]]:
    """The outputs of a run as a process killed after step 2 leaves them, what it computes, and its command."""
    outputs = tmp_path_factory.mktemp("stopped")
    overrides = [*small_run, f"paths.outputs={outputs}"]
    assert spawn(overrides) == 0
    folder = only_run(outputs)
    whole = content(folder)
    for name in ("step_000003", "step_000004", "final"):
        shutil.rmtree(folder.checkpoints / name, ignore_errors=True)
    folder.update_status(state="running", step=4)
    return outputs, whole, small_run


def harm(folder: Path, seed: int) -> tuple[str, Path]:
    """Damages one file of a run, of any kind and anywhere; its kind of damage and its place."""
    rng = np.random.default_rng(seed)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    while True:
        kind, file = sorted(EVERY)[rng.integers(len(EVERY))], files[rng.integers(len(files))]
        try:
            EVERY[kind](file, rng)
        except (UnicodeDecodeError, ValueError, TypeError, IndexError):
            continue  # this kind is for records of JSON
        return kind, file.relative_to(folder)


@pytest.mark.parametrize("seed", range(NUMBER))
def test_a_damaged_run_goes_on_exactly_or_is_refused_in_one_sentence(seed: int, stopped, tmp_path: Path):
    outputs, whole, overrides = stopped
    shutil.copytree(outputs, tmp_path / "outputs")
    folder = only_run(tmp_path / "outputs")
    kind, file = harm(folder.path, seed)
    said = tmp_path / "said"
    arguments = [*overrides, f"paths.outputs={tmp_path / 'outputs'}"]
    alone = forked(child.module, "opd.train", arguments, said, Path.cwd(), os.environ.copy())
    alone.join(300)
    printed = said.with_suffix(".err").read_text()
    assert alone.exitcode in (0, 2) and "Traceback" not in printed, (kind, file, printed)
    if alone.exitcode == 2:
        sentences = [line for line in printed.splitlines() if line.startswith("opd: ") and "warning" not in line]
        assert len(sentences) == 1 and folder.path.name in sentences[0], (kind, file, printed)
        return
    assert folder.status().state == "finished"
    after = content(folder)
    assert {name for name in whole if after.get(name) != whole[name]} <= {str(file), *given_up(file)}, (kind, printed)
    write_report(Arguments(runs=tmp_path / "outputs", out=tmp_path / "report"))


def given_up(file: Path) -> set[str]:
    """What cannot be computed again where a record of a step before the checkpoint is damaged."""
    return {"metrics"} if file.name == "metrics.jsonl" else set()


@pytest.mark.parametrize("place", [".lock", "config.yaml", "status.json", "manifest.json", "metrics.jsonl", "evaluate"])
def test_a_folder_in_the_place_of_a_record_is_one_sentence(place: str, stopped, tmp_path: Path):
    outputs, _, overrides = stopped
    shutil.copytree(outputs, tmp_path / "outputs")
    folder = only_run(tmp_path / "outputs")
    target = folder.path / place
    if target.is_dir():
        shutil.rmtree(target)
        target.write_text("")
    else:
        target.unlink()
        target.mkdir()
    said = tmp_path / "said"
    arguments = [*overrides, f"paths.outputs={tmp_path / 'outputs'}"]
    alone = forked(child.module, "opd.train", arguments, said, Path.cwd(), os.environ.copy())
    alone.join(300)
    printed = said.with_suffix(".err").read_text()
    sentences = [line for line in printed.splitlines() if line.startswith("opd: ") and "warning" not in line]
    assert alone.exitcode == 2 and len(sentences) == 1 and str(target) in sentences[0], printed


def test_a_folder_that_is_moved_away_in_mid_run_does_not_begin_again(tmp_path: Path, small_run, monkeypatch):
    config = composed([*small_run, f"paths.outputs={tmp_path / 'outputs'}"])
    appended = RunDir.append_metrics

    def moving(self: RunDir, metrics) -> None:
        appended(self, metrics)
        if metrics["step"] == 2:
            self.path.rename(tmp_path / "moved")

    monkeypatch.setattr(RunDir, "append_metrics", moving)
    with pytest.raises((OSError, ValueError), match="No such file"):
        train(config)
    assert not [*(tmp_path / "outputs" / "main").iterdir()]
