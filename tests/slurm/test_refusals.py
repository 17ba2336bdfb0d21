"""What a real SLURM refuses, or does not answer: one clear sentence each, and nothing left behind."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeps import cancel, submit
from sweeps.ledger import Ledger
from tests.slurm.conftest import CLUSTER, command
from tests.unit.sweeps.conftest import said

STATE = Path("/var/lib/opd-slurm")


@pytest.fixture
def sweep(small_run: list[str], tmp_path: Path) -> list[str]:
    return ["+sweep=gamma", "sweep.seeds=[0]", "sweep.grid=[{gamma:[0.5]}]", *small_run, f"paths.outputs={tmp_path}"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("cluster.partition=nonsense", "sbatch refuses: .*nvalid partition name specified"),
        ("cluster.constraint=nonsense", "sbatch refuses: .*nvalid feature specification"),
        ("cluster.gpus_per_rank=1", "sbatch refuses: Invalid generic resource"),
        ("cluster.mem=900G", "sbatch refuses: Memory specification can not be satisfied; .*node configuration"),
        ("cluster.sbatch={exclude:nowhere}", "sbatch refuses: .*nvalid node name"),
        ("cluster.sbatch={nonsense:1}", "sbatch refuses: .*unrecognized option.*--nonsense"),
        ("cluster.sbatch={begin:sometimes}", "sbatch refuses: .*nvalid time specification .*sometimes"),
    ],
)
def test_what_sbatch_refuses_is_said_in_its_words(sweep: list[str], tmp_path: Path, given: str, says: str, refused):
    cluster = [text for text in CLUSTER if text.partition("=")[0] != given.partition("=")[0]]
    assert re.search(says, refused(submit, *sweep, *cluster, given))
    (one,) = Ledger(tmp_path / "main").submissions()
    assert one.abandoned and not one.jobs


def test_a_job_that_no_partition_can_ever_run_is_queued_with_slurms_reason(sweep: list[str], tmp_path: Path):
    said("submit", *sweep, *[text for text in CLUSTER if "per_node" not in text], "cluster.nodes=4")
    limit = time.monotonic() + 60
    while "PartitionNodeLimit" not in (table := said("status", f"paths.outputs={tmp_path}")):
        assert time.monotonic() < limit, table
        time.sleep(0.5)
    assert "1 queued" in table
    said("cancel", "study=main", f"paths.outputs={tmp_path}")


@pytest.fixture
def stopped() -> Iterator[Callable[[str], None]]:
    """Ends a daemon of the cluster for the length of a test."""
    ended = []

    def stop(daemon: str) -> None:
        os.kill(int((STATE / f"{daemon}.pid").read_text()), signal.SIGTERM)
        ended.append(daemon)
        limit = time.monotonic() + 30
        while (STATE / f"{daemon}.pid").exists() and time.monotonic() < limit:
            time.sleep(0.1)

    if not (STATE / "slurmctld.pid").exists():
        required = bool(os.environ.get("OPD_REQUIRE_SLURM"))
        (pytest.fail if required else pytest.skip)("this SLURM is not of cluster.sh, and is not ours to stop")
    yield stop
    for daemon in ended:
        subprocess.run([daemon], check=True)
    limit = time.monotonic() + 60
    while subprocess.run(["squeue", "-h"], capture_output=True, check=False).returncode:
        assert time.monotonic() < limit
        time.sleep(0.5)


def test_a_controller_that_is_down_is_said_and_states_are_then_the_records(
    sweep: list[str], tmp_path: Path, stopped, refused
):
    command("submit", *sweep, *CLUSTER, "cluster.sbatch={begin:now+1hour}")
    where = f"paths.outputs={tmp_path}"
    stopped("slurmctld")
    assert "cluster=slurm: SLURM does not answer (scontrol: " in refused(submit, *sweep, *CLUSTER, "study=other")
    assert "and its jobs continue; try again when it does" in refused(cancel, "study=main", where)
    asked = command("status", where)
    assert "opd: warning: SLURM does not answer" in asked.stderr and "1 queued" in asked.stdout
    assert "Traceback" not in asked.stderr


def test_an_interrupted_submission_waits_for_a_controller_that_is_down(
    sweep: list[str], tmp_path: Path, stopped, refused
):
    book = Ledger(tmp_path / "main")
    intent = {"sweep": "gamma", "cluster": "slurm", "code": "c", "runs": ["r"], "portion": 1}
    book.folder.mkdir(parents=True)
    book.append("intent", submission="unsaid", **intent)
    stopped("slurmctld")
    sentence = refused(submit, *sweep)
    assert "submission unsaid was interrupted, and SLURM does not answer (squeue: " in sentence
    assert not book.submissions()[0].abandoned


def test_without_accounting_the_queue_is_asked_alone(sweep: list[str], tmp_path: Path, stopped):
    said("submit", *sweep, *CLUSTER, "cluster.sbatch={begin:now+1hour}")
    stopped("slurmdbd")
    asked = command("status", f"paths.outputs={tmp_path}")
    assert "1 queued" in asked.stdout and asked.stderr == ""
    said("cancel", "study=main", f"paths.outputs={tmp_path}")
