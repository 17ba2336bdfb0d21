"""Damage to any file of a study, its submissions too: every command that reads it shows the other run, or says one
sentence.

`OPD_DAMAGES=200 python -m pytest tests/integration/test_damaged_study.py` tries as many; 20 are tried always.
"""

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from analysis.read_study import read_study
from analysis.study import write_study
from benchmarks.damage import EVERY
from tests.forks import forked
from tests.integration import child
from tests.integration.test_sweeps import command, until

NUMBER = int(os.environ.get("OPD_DAMAGES", "20"))
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture(scope="module")
def study(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a sweep of two seeds, as a real submission and its runner leave them."""
    outputs = tmp_path_factory.mktemp("study")
    grid = "sweep.grid=[{name:[default]}]"
    command("submit", "+sweep=epochs", "sweep.seeds=[0,1]", grid, *small_run, f"paths.outputs={outputs}")
    until(outputs, lambda seen: len(seen) == 1 and {run["state"] for run in seen.values()} == {"finished"})
    return outputs


def kind_of(file: Path) -> str:
    """A file's kind: its path without what differs from file to file of a kind."""
    if "code" in file.parts:
        return f"code, {file.suffix}"
    return re.sub(r"[0-9a-f]{6,}|\d+", "#", str(file))


def harm(outputs: Path, seed: int) -> tuple[str, Path]:
    """Damages one file of the study or of its first run, each kind of file as often as another."""
    rng = np.random.default_rng([seed, 25])
    files: dict[str, list[Path]] = {}
    for file in sorted(outputs.rglob("*")):
        place = file.relative_to(outputs)
        if file.is_file() and not any(part.endswith("-s1") for part in place.parts):
            files.setdefault(kind_of(place), []).append(file)
    while True:
        choices = files[sorted(files)[int(rng.integers(len(files)))]]
        damage, file = sorted(EVERY)[int(rng.integers(len(EVERY)))], choices[int(rng.integers(len(choices)))]
        with suppress(UnicodeDecodeError, ValueError, TypeError, IndexError):  # that damage is for records of JSON
            EVERY[damage](file, rng)
            return damage, file.relative_to(outputs)


@pytest.mark.parametrize("seed", range(NUMBER))
def test_a_damaged_study_is_shown_or_refused_in_one_sentence(seed: int, study: Path, tmp_path: Path):
    outputs, where = tmp_path / "outputs", f"paths.outputs={tmp_path / 'outputs'}"
    shutil.copytree(study, outputs, symlinks=True)
    own, other = (path.name for path in sorted((outputs / "main").iterdir()) if not path.name.startswith("."))
    what = harm(outputs, seed)
    commands = {
        "status": ("sweeps.status", where),
        "status --json": ("sweeps.status", where, "--json"),
        "logs": ("sweeps.logs", own, where),
        "the other's logs": ("sweeps.logs", other, where),
        "resubmit": ("sweeps.resubmit", where, "--dry-run"),
        "cancel": ("sweeps.cancel", where, "study=main"),
    }
    process = forked(child.modules, list(commands.values()), tmp_path / "said", os.environ.copy())
    process.join(300)
    assert process.exitcode == 0, (what, process.exitcode)
    for number, name in enumerate(commands):
        out, err = ((tmp_path / f"said_{number}{suffix}").read_text() for suffix in (".out", ".err"))
        status = int((tmp_path / f"said_{number}.rc").read_text())
        assert "Traceback" not in err and not CONTROL.search(out + err), (what, name, out, err)
        assert status in (0, 1, 2), (what, name, status, err)
        if status == 2:
            sentences = [line for line in err.splitlines() if line.startswith("opd: ") and "warning" not in line]
            assert len(sentences) == 1, (what, name, err)
    shown = (tmp_path / "said_1.out").read_text().splitlines()
    assert other in {json.loads(line)["run"] for line in shown}, (what, shown)
    write_study(outputs, tmp_path / "export")  # reads it as a report does
    counted = read_study(tmp_path / "export").runs.set_index("run")["counted"]
    assert counted[f"main/{other}"], what
