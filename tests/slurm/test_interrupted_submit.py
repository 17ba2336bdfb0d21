"""A submission that is ended as sbatch takes its array: SLURM has it or has not, and the next submission knows."""

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from sweeps.ledger import Ledger
from tests.slurm.conftest import CLUSTER, ROOT
from tests.slurm.test_sweep import until
from tests.unit.sweeps.conftest import said

SBATCH = """#!/bin/sh
{before}
{sbatch} "$@"
status=$?
{after}
exit $status
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("taken", [False, True], ids=["before", "after"])
def test_what_slurm_took_is_found_by_its_name_and_the_rest_is_submitted_again(
    small_run: list[str], tmp_path: Path, number: int, taken: bool
):
    """The sbatch that is found first ends the command that calls it, and calls the real one, or does not.

    What was submitted again runs to its end in two of the four cases, and waits to be cancelled in the others.
    """
    runs = number == signal.SIGKILL
    sbatch, end = shutil.which("sbatch"), f"kill -{number} $PPID; sleep 1"
    (tmp_path / "bin").mkdir()
    script = SBATCH.format(sbatch=sbatch, before="" if taken else f"{end}; exit 1", after=end if taken else "")
    (tmp_path / "bin" / "sbatch").write_text(script)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    arguments = [
        "+sweep=gamma", "sweep.seeds=[0,1]", "sweep.grid=[{gamma:[0.5]}]", *small_run,
        f"paths.outputs={tmp_path / 'outputs'}", *CLUSTER, "cluster.ranks_per_node=1",
        *([] if runs else ["cluster.sbatch={begin:now+1hour}"]),
    ]  # fmt: skip
    # Ignored where a shell started us in the background.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    ended = subprocess.run(
        [sys.executable, "-m", "sweeps.submit", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=heeding,
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert ended.returncode == (130 if number == signal.SIGINT else -number), ended
    assert "Traceback" not in ended.stderr
    book = Ledger(tmp_path / "outputs" / "main")
    (first,) = book.submissions()
    assert not first.submitted and not first.abandoned

    again = said("submit", *arguments)
    assert ("to do      0" if taken else "to do      2") in again
    found = book.submissions()
    assert [one.abandoned is None for one in found] == ([True] if taken else [False, True])
    asked = ["sacct", "-n", "-P", "-X", "--format=JobID"] if runs else ["squeue", "-h", "-o", "%F"]
    outputs = tmp_path / "outputs"
    if runs:
        seen = until(outputs, lambda seen: {run["state"] for run in seen.values()} == {"finished"}, "all finished")
        assert len(seen) == 2 and {run["attempts"] for run in seen.values()} == {1}
        printed = b"".join(log.read_bytes() for log in book.submission_folder(found[-1].id).glob("logs/*.log"))
        assert b"4/4" in printed and b"\x1b" not in printed and b"\r" not in printed  # no progress bars in a log
    arrays = {
        row.partition("_")[0]
        for one in found
        for row in subprocess.run(
            [*asked, f"--name=opd-{one.id}-0"], capture_output=True, text=True, check=True
        ).stdout.split()
    }
    assert arrays == {found[-1].jobs[0][0]}
    if not runs:
        assert "ended 2 runs" in said("cancel", "study=main", f"paths.outputs={outputs}")
