"""What a run printed: `python -m sweeps.logs RUN [study=NAME] [lines=50] [--follow]`; RUN may be the start of an id."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from opd.cli import key_values
from opd.errors import UserError
from sweeps import choose, cli, state
from sweeps.ledger import Ledger

FLAGS = {"--follow": "goes on printing what the run prints", "--path": "prints the paths of its logs alone"}
KEYS = ("study", "paths.outputs", "lines")


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, rest = cli.flags(arguments, FLAGS)
    names = [text for text in rest if "=" not in text]
    given = key_values([text for text in rest if "=" in text], KEYS)
    if len(names) != 1:
        raise UserError("give one run, by its id or the start of it, as python -m sweeps.logs mis-90d9fb49-s0")
    lines = given.get("lines", "50")
    if not lines.isdigit():
        raise UserError(f"lines={lines}: should be a number of lines")
    books = choose.studies(given.get("paths.outputs", "outputs"), given.get("study"))
    book, run = the_run(books, names[0])
    files = logs(book, run)
    if not files:
        raise UserError(f"{run}: has no log; it has not started, or was started by hand")
    if "--path" in flags:
        print("\n".join(map(str, files)))
        return
    print(f"{files[-1]}:", flush=True)
    sys.stdout.flush()
    os.execvp("tail", ["tail", "-n", lines, *(["-F"] if "--follow" in flags else []), str(files[-1])])


def the_run(books: Sequence[Ledger], start: str) -> tuple[Ledger, str]:
    """The one run whose id begins so.

    Raises:
        UserError: where there is none or several.
    """
    found = [
        (book, one.run) for book in books for one in state.look(book, metrics=False).runs if one.run.startswith(start)
    ]
    exact = [pair for pair in found if pair[1] == start]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise UserError(f"{start}: no run's id begins so; python -m sweeps.status lists them")
    raise UserError(
        f"{start}: is the start of {len(found)} runs, {found[0][1]} and {found[1][1]} among them; give more"
    )


def logs(book: Ledger, run: str) -> list[Path]:
    """A run's logs, one a submission, oldest first."""
    found = []
    for one in book.submissions():
        if run not in one.runs or one.abandoned is not None:
            continue
        job = one.job_of(one.runs.index(run))
        folder = book.submission_folder(one.id) / "logs"
        file = folder / (f"{job}.log" if one.cluster == "slurm" else f"{run}.log")
        found += [file] if file.exists() else []
    return found


if __name__ == "__main__":
    cli.run(main)
