"""A submission that is larger than SLURM's arrays may be: several of them, each run in one, and found again."""

import os
import re
from pathlib import Path

import pytest

from sweeps import slurm, snapshot
from sweeps.handover import hand_over, recover
from sweeps.ledger import Ledger
from tests.unit.sweeps.test_untrusted_study import SLURM

RUNS = [f"mis-01234567-s{seed}" for seed in range(5)]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs of SLURM's names, which are found first: sbatch keeps what it is given, and numbers it."""
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
def test_an_array_ends_below_slurms_bound_on_its_indices(programs: Path, said: str, largest: int):
    program(programs / "scontrol", f"echo '{said}'")
    assert slurm.require() == largest


def test_each_run_is_in_one_array_and_one_array_waits_for_another(programs: Path, tmp_path: Path):
    book = Ledger(tmp_path / "main")
    with book.lock():
        hand_over(book, SLURM, "gamma", [(run, {}) for run in RUNS], snapshot.current(), 2)
    (one,) = book.submissions()
    assert one.jobs == [("71", 0, 2), ("72", 2, 2), ("73", 4, 1)] and one.portion == 2
    scripts = [(programs / f"{number}.sh").read_text() for number in (1, 2, 3)]
    assert [re.findall(r"--array=(\d+-\d+)", text) for text in scripts] == [["0-1"], ["0-1"], ["0-0"]]
    assert [re.findall(r"afterany:(\d+)", text) for text in scripts] == [[], ["71"], ["72"]]
    assert [re.findall(r"sweeps\.task \S+ (\d+) ", text) for text in scripts] == [["0"], ["2"], ["4"]]


def test_arrays_that_slurm_took_unsaid_are_found_by_their_names(programs: Path, tmp_path: Path):
    """The newest of a name: an older one was ended before it was submitted anew."""
    book = Ledger(tmp_path / "main")
    book.submission_folder("one").mkdir(parents=True)
    book.append("intent", submission="one", sweep="s", cluster="slurm", code="c", runs=RUNS, portion=3)
    program(programs / "squeue", 'case "$*" in *opd-one-0*) echo 9; echo 9;; *opd-one-1*) echo 20;; esac')
    program(programs / "sacct", 'case "$*" in *opd-one-0*) echo 9_0; echo 10_1;; esac')
    with book.lock():
        recover(book)
    assert book.submissions()[0].jobs == [("10", 0, 3), ("20", 3, 2)]
