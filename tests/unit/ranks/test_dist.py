"""Who a process is among its run's, as torchrun and SLURM say it."""

import os

import pytest

from opd.ranks.dist import FIRST_PORT, NUM_PORTS, _set_master, world

STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0, 1, 0)),
        (TORCHRUN, (5, 8, 1)),
        ({"RANK": "5", "WORLD_SIZE": "8"}, (5, 8, 0)),
        (STEP, (3, 4, 1)),
        (STEP | TORCHRUN, (5, 8, 1)),  # torchrun within a SLURM step
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1, 0)),  # an allocation without srun
    ],
)
def test_rank_size_and_place_on_the_node(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: tuple):
    for name in STEP | TORCHRUN | {"SLURM_NTASKS": ""}:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert world() == expected


def test_slurm_rendezvous(monkeypatch: pytest.MonkeyPatch, tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho n7\necho n9\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[7,9]")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what is set here does not outlive the test
    ports = []
    for job, step in (("12", "0"), ("12", "0"), ("12", "1"), ("13", "0")):
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_STEP_ID", step)
        _set_master()
        assert os.environ["MASTER_ADDR"] == "n7"
        ports.append(int(os.environ["MASTER_PORT"]))
    assert ports[0] == ports[1] and len(set(ports)) == 3
    assert all(FIRST_PORT <= port < FIRST_PORT + NUM_PORTS for port in ports)
