"""Print a run's log: `python -m sweeps.logs RUN [study=NAME] [lines=50] [--follow]`; RUN is an id or its start."""

import codecs
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from opd.cli import key_values
from opd.errors import UserError
from opd.printable import printable_text, say
from sweeps import cli, executor, selection, state
from sweeps.ledger import Ledger

FLAGS = {"--follow": "keeps printing as the run prints", "--path": "prints only the paths of its logs"}
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
    ledger, run = find(selection.studies(given), names[0])
    files = log_files(ledger, run)
    if not files:
        raise UserError(f"{run}: has no log; it has not started, or was not submitted by a sweep")
    if "--path" in flags:
        say("\n".join(map(str, files)))
        return
    say(f"{files[-1]}:")
    command = ["tail", "-n", lines, *(["-F"] if "--follow" in flags else []), str(files[-1])]
    with suppress(KeyboardInterrupt):  # the way to end --follow
        sys.exit(show(command))


def show(command: Sequence[str]) -> int:
    """Print what `command` writes as it writes it, made printable; its exit status."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        while content := process.stdout.read(2**16):
            print(printable_text(decoder.decode(content)), end="", flush=True)
    return process.returncode


def find(ledgers: Sequence[Ledger], prefix: str) -> tuple[Ledger, str]:
    """The one run whose id starts with `prefix`, or is it, and its study.

    Raises:
        UserError: where there is none, or there are several.
    """
    matches = [
        (ledger, run.run)
        for ledger in ledgers
        for run in state.read(ledger, metrics=False).runs
        if run.run.startswith(prefix)
    ]
    exact = [pair for pair in matches if pair[1] == prefix]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    if not matches:
        raise UserError(f"{prefix}: no run's id starts with this; python -m sweeps.status lists the runs")
    raise UserError(
        f"{prefix}: matches {len(matches)} runs, {matches[0][1]} and {matches[1][1]} among them; give more of it"
    )


def log_files(ledger: Ledger, run: str) -> list[Path]:
    """A run's logs, one per submission, oldest first."""
    files = [
        executor.get(one.cluster).log_file(one, one.runs.index(run))
        for one in state.known_submissions(ledger)[0]
        if run in one.runs and one.abandoned is None
    ]
    return [file for file in files if file.exists()]


if __name__ == "__main__":
    cli.run(main)
