"""Frees disk: `python -m sweeps.prune [study=NAME] [name=…] [--dry-run]`, of finished runs' periodic checkpoints.

`checkpoints/final`, which an evaluation needs, stays, and so do all records.
"""

import shutil
from collections.abc import Sequence

from filelock import FileLock, Timeout

from opd.cli import key_values
from opd.records.run_dir import RunDir
from sweeps import choose, cli, state

FLAGS = {"--dry-run": "says what would be deleted and deletes nothing"}
KEYS = ("study", "paths.outputs", "name", "seed", "run")


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, rest = cli.flags(arguments, FLAGS)
    given = key_values(rest, KEYS)
    runs, freed = 0, 0
    for book in choose.studies(given.get("paths.outputs", "outputs"), given.get("study")):
        for one in choose.chosen(state.look(book, metrics=False).runs, given | {"state": "finished"}):
            if size := prune(RunDir(book.study / one.run), dry_run="--dry-run" in flags):
                runs, freed = runs + 1, freed + size
                print(f"  {one.study}/{one.run}: {_read(size)}")
    print(f"{'would free' if '--dry-run' in flags else 'freed'} {_read(freed)} of {runs} runs")


def prune(run: RunDir, *, dry_run: bool) -> int:
    """Deletes a finished run's periodic checkpoints; returns their bytes. A run without its final one keeps all."""
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


def _read(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


if __name__ == "__main__":
    cli.run(main)
