"""A submission that exceeds SLURM's largest array is split into several."""

import os
import re
from pathlib import Path

import pytest

from sweeps import executor, snapshot
from sweeps.ledger import Ledger
from sweeps.submission import recover, submit_runs
from tests.unit.sweeps.conftest import SLURM

RUNS = [f"mis-01234567-s{seed}" for seed in range(5)]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of fake SLURM commands, first in PATH; sbatch saves the scripts that it gets, numbered."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    program(folder / "sbatch", f'echo x >> {folder}/n; n=$(wc -l < {folder}/n); cp "$1" {folder}/$n.sh; '
            'echo "Submitted batch job $((70 + n))"')  # fmt: skip
    for name in ("srun", "scancel", "squeue", "sacct"):
        program(folder / name, "")
    return folder


def program(file: Path, text: str) -> None:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("said", "largest"), [("MaxArraySize            = 1001", 1000), ("", 1000), ("MaxArraySize = 1", 1)]
)
def test_the_largest_array_is_below_slurms_limit_on_indices(programs: Path, said: str, largest: int):
    program(programs / "scontrol", f"echo '{said}'")
    assert executor.get("slurm").max_array_size() == largest


def test_each_run_is_in_one_array_and_arrays_run_one_after_another(programs: Path, tmp_path: Path):
    ledger = Ledger(tmp_path / "main")
    with ledger.lock():
        submit_runs(ledger, SLURM, "gamma", [(run, {}) for run in RUNS], snapshot.current(), 2)
    (one,) = ledger.submissions()
    assert one.jobs == [("71", 0, 2), ("72", 2, 2), ("73", 4, 1)] and one.portion == 2
    scripts = [(programs / f"{number}.sh").read_text() for number in (1, 2, 3)]
    assert [re.findall(r"--array=(\d+-\d+)", text) for text in scripts] == [["0-1"], ["0-1"], ["0-0"]]
    assert [re.findall(r"afterany:(\d+)", text) for text in scripts] == [[], ["71"], ["72"]]
    assert [re.findall(r"sweeps\.task \S+ (\d+) ", text) for text in scripts] == [["0"], ["2"], ["4"]]


def test_unrecorded_arrays_are_found_by_their_names(programs: Path, tmp_path: Path):
    """The newest of a name: an older one was cancelled before it was submitted again."""
    ledger = Ledger(tmp_path / "main")
    ledger.submission_folder("one").mkdir(parents=True)
    ledger.append("intent", submission="one", sweep="s", cluster="slurm", code="c", runs=RUNS, portion=3)
    program(programs / "squeue", 'case "$*" in *opd-one-0*) echo 9; echo 9;; *opd-one-1*) echo 20;; esac')
    program(programs / "sacct", 'case "$*" in *opd-one-0*) echo 9_0; echo 10_1;; esac')
    with ledger.lock():
        recover(ledger)
    assert ledger.submissions()[0].jobs == [("10", 0, 3), ("20", 3, 2)]
