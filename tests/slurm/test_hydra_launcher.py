"""`python -m opd.train -m +sweep=NAME hydra/launcher=submitit_slurm` on a real SLURM."""

import os
import subprocess
import sys
from pathlib import Path

from opd.records.run_dir import RunDir
from tests.slurm.conftest import ROOT, command


def test_its_runs_finish_in_the_places_of_a_submission(small_run: list[str], tmp_path: Path):
    sweep = [
        "+sweep=epochs",
        "sweep.seeds=[0]",
        "sweep.grid=[{gamma:[0,0.5]}]",
        *small_run,
        f"paths.outputs={tmp_path}",
    ]
    done = subprocess.run(
        [
            sys.executable, "-m", "opd.train", "-m", *sweep, "hydra/launcher=submitit_slurm",
            "hydra.launcher.timeout_min=30", "hydra.launcher.cpus_per_task=1",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folders = list((tmp_path / "main").iterdir())
    assert len(folders) == 2
    for folder in folders:
        status = RunDir(folder).status()
        assert status.state == "finished" and status.job_id and RunDir(folder).metrics()[-1]["step"] == 4
    said = command("submit", *sweep, "--dry-run").stdout
    assert "finished   2" in said and "to do      0" in said
