"""A real SLURM of three nodes, of cluster.sh; without one these tests skip, or fail if OPD_REQUIRE_SLURM is set.

SLURM's daemons want to be root and there is one SLURM a host, so .ci/run starts and ends it, not a test.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import models, small_run  # noqa: F401
from tests.unit.sweeps.conftest import refused  # noqa: F401

ROOT = Path(__file__).parents[2]
MISSING = "there is no SLURM of three nodes here; tests/slurm/cluster.sh up starts one, as root"
# Nodes that are all this host have no addresses of their own, and its jobs must not meet at one port.
MEET = 'cluster.setup=["export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) OMP_NUM_THREADS=1"]'
CLUSTER = [
    "cluster=slurm",
    "cluster.gpus_per_rank=0",
    "cluster.cpus_per_rank=1",
    "cluster.ranks_per_node=2",
    "cluster.time=30",
    "cluster.max_parallel=3",
    MEET,
]


@pytest.fixture(scope="session", autouse=True)
def slurm() -> None:
    try:
        nodes = subprocess.run(["sinfo", "-h", "-N", "-o", "%n"], capture_output=True, text=True, timeout=30)
        there = nodes.returncode == 0 and len(nodes.stdout.split()) >= 3
    except (OSError, subprocess.TimeoutExpired):
        there = False
    if not there:
        if os.environ.get("OPD_REQUIRE_SLURM"):
            pytest.fail(f"OPD_REQUIRE_SLURM is set, and {MISSING}")
        pytest.skip(MISSING)


def command(module: str, *arguments: str, ok: bool = True, timeout: float = 300) -> subprocess.CompletedProcess:
    """`python -m sweeps.<module>` from this checkout."""
    done = subprocess.run(
        [sys.executable, "-m", f"sweeps.{module}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done
