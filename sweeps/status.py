"""Show the state of every run: `python -m sweeps.status [study=NAME] [paths.outputs=DIR] [state=…] [name=…] [seed=…]`.

States come from the runs' own records, checked against the scheduler. Where the two disagree the table says so, and the
records of a run that ended without writing its end are corrected.
"""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict

from opd.cli import key_values
from opd.printable import say, warn
from sweeps import cli, selection, state
from sweeps.differences import add_differences
from sweeps.run_state import STATES, RunState
from sweeps.selection import KEYS
from sweeps.status_cache import StatusCache

FLAGS = {
    "--watch": "shows the table again every few seconds",
    "--wait": "shows it once nothing is queued or running; exit status 1 where a run has not finished",
    "--json": "prints one JSON object per run",
}
INTERVAL = 5.0
COLUMNS = ("run", "differs in", "state", "step", "mean@k", "reverse_kl", "left", "job", "node", "tries", "")
# The order of a table that is longer than the screen.
_URGENCY = (
    "running",
    "failed",
    "lost",
    "timeout",
    "refused",
    "preempted",
    "queued",
    "cancelled",
    "pending",
    "finished",
)


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, rest = cli.flags(arguments, FLAGS)
    given = key_values(rest, KEYS)
    if "--watch" in flags:
        with suppress(KeyboardInterrupt):  # the way to end it
            while True:
                _show(given, flags, shutil.get_terminal_size().lines if sys.stdout.isatty() else None)
                time.sleep(INTERVAL)
        return
    while "--wait" in flags and any(run.live for run in gather(given)[0]):
        time.sleep(INTERVAL)
    runs = _show(given, flags, None)
    if "--wait" in flags and any(run.state != "finished" for run in runs):
        sys.exit(1)


def _show(given: Mapping[str, str], flags: set[str], height: int | None) -> list[RunState]:
    runs, warnings = gather(given)
    if "--json" in flags:
        print("\n".join(json.dumps(asdict(run)) for run in runs), flush=True)
    else:
        text = table(runs if height is None else by_urgency(runs), height and height - len(warnings))
        print("" if height is None else "\x1b[2J\x1b[H", end="")
        say(text)
    for warning in warnings:
        warn(warning)
    return runs


def gather(given: Mapping[str, str]) -> tuple[list[RunState], list[str]]:
    """The selected runs, and warnings; corrects the records of runs that have ended."""
    runs, warnings = [], []
    for ledger in selection.studies(given):
        cache = StatusCache(ledger.study)
        study = state.read(ledger, cache=cache)
        cache.save()
        state.correct_records(ledger, study.runs)
        add_differences(ledger, study.runs)
        runs += study.runs
        warnings += study.warnings
    return selection.select(runs, given), warnings


def by_urgency(runs: Sequence[RunState]) -> list[RunState]:
    """Running ones first, then those that need attention, then the rest."""
    return sorted(runs, key=lambda run: _URGENCY.index(run.state))


def table(runs: Sequence[RunState], height: int | None = None) -> str:
    """A line per run, the first ones where there are more than fit `height` lines, and how many are in which state."""
    if not runs:
        return "no runs"
    several = len({run.study for run in runs}) > 1
    number = len(runs) if height is None or len(runs) + 4 <= height else max(1, height - 5)
    rows = [COLUMNS, *(_row(run, several) for run in runs[:number])]
    if not any(run.differs for run in runs):
        rows = [(row[0], *row[2:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if number < len(runs):
        lines.append(f"… and {len(runs) - number} more")
    counts = Counter(run.state for run in runs)
    total = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    return "\n".join([*lines, "", f"{len(runs)} runs: {total}"])


def _row(run: RunState, several: bool) -> tuple[str, ...]:
    mean = next((f"{100 * value:.1f} %" for key, value in run.metrics.items() if "/mean@" in key), "")
    kl = run.metrics.get("divergence/reverse_kl")
    return (
        f"{run.study}/{run.run}" if several else run.run,
        run.differs,
        run.state,
        f"{run.step}/{run.num_steps}" if run.num_steps else "",
        mean,
        "" if kl is None else f"{kl:.4f}",
        "" if run.left is None else cli.duration(run.left),
        run.job or "",
        run.node or "",
        str(run.attempts or ""),
        "; ".join(text for text in (run.error, run.note) if text),
    )


if __name__ == "__main__":
    cli.run(main)
