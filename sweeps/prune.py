"""Free disk space: `python -m sweeps.prune [study=NAME] [name=…] [--dry-run]` deletes finished runs' checkpoints.

`checkpoints/final`, which an evaluation needs, and all records are kept.
"""

import shutil
from collections.abc import Sequence

from filelock import FileLock, Timeout
from rich.filesize import decimal

from opd.cli import key_values
from opd.printable import say
from opd.records.run_dir import RunDir
from sweeps import cli, selection

FLAGS = {"--dry-run": "says what would be deleted and deletes nothing"}
KEYS = ("study", "paths.outputs", "name", "seed", "run")


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, rest = cli.flags(arguments, FLAGS)
    given = key_values(rest, KEYS)
    runs, freed = 0, 0
    for ledger in selection.studies(given):
        for run in selection.runs(ledger, given | {"state": "finished"}):
            if size := prune(RunDir(ledger.study / run.run), dry_run="--dry-run" in flags):
                runs, freed = runs + 1, freed + size
                say(f"  {run.study}/{run.run}: {decimal(size)}")
    print(f"{'would free' if '--dry-run' in flags else 'freed'} {decimal(freed)} of {runs} runs")


def prune(run: RunDir, *, dry_run: bool) -> int:
    """Delete a finished run's periodic checkpoints; their size in bytes. A run without a final one keeps all."""
    if not (run.checkpoints / "final").is_dir():
        return 0
    try:
        with FileLock(run.path / ".lock", timeout=0):
            if run.status().state != "finished":
                return 0
            folders = [folder for folder in run.checkpoints.glob("step_*") if folder.is_dir()]
            size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
            for folder in [] if dry_run else folders:
                shutil.rmtree(folder)
            return size
    except Timeout:
        return 0


if __name__ == "__main__":
    cli.run(main)
