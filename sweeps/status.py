"""The state of every run: `python -m sweeps.status [study=NAME] [paths.outputs=DIR] [state=…] [name=…] [seed=…]`.

By the runs' own records, checked against SLURM's. Where the two disagree the table says so, and the records of a run
that has ended without a word are set right.
"""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

from opd.cli import key_values
from sweeps import choose, cli, state
from sweeps.glance import Glances
from sweeps.state import Seen

FLAGS = {
    "--watch": "shows the table anew every few seconds",
    "--wait": "shows it once nothing is queued or running; exit status 1 where a run has not finished",
    "--json": "prints one JSON object a run",
}
KEYS = ("study", "paths.outputs", "state", "name", "seed", "run")
INTERVAL = 5.0


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, rest = cli.flags(arguments, FLAGS)
    given = key_values(rest, KEYS)
    if "--watch" in flags:
        with suppress(KeyboardInterrupt):  # how one leaves
            while True:
                _look(given, flags, shutil.get_terminal_size().lines if sys.stdout.isatty() else None)
                time.sleep(INTERVAL)
        return
    while "--wait" in flags and any(one.live for one in gather(given)[0]):
        time.sleep(INTERVAL)
    seen = _look(given, flags, None)
    if "--wait" in flags and any(one.state != "finished" for one in seen):
        sys.exit(1)


def _look(given: Mapping[str, str], flags: set[str], height: int | None) -> list[Seen]:
    seen, troubles = gather(given)
    if "--json" in flags:
        print("\n".join(json.dumps(state.as_record(one)) for one in seen), flush=True)
    else:
        text = table(seen if height is None else first_the_live(seen), height and height - len(troubles))
        print(text if height is None else f"\x1b[2J\x1b[H{text}", flush=True)
    for trouble in troubles:
        print(f"opd: warning: {trouble}", file=sys.stderr)
    return seen


def gather(given: Mapping[str, str]) -> tuple[list[Seen], list[str]]:
    """The runs that the filters leave, and what could not be found out; settles what it finds settled."""
    seen, troubles = [], []
    for book in choose.studies(given.get("paths.outputs", "outputs"), given.get("study")):
        glances = Glances(book.study)
        found = state.look(book, glances=glances)
        glances.keep()
        state.settle(book, found.runs)
        seen += found.runs
        troubles += found.troubles
    return choose.chosen(seen, given), troubles


COLUMNS = ("run", "state", "step", "mean@k", "reverse_kl", "left", "job", "node", "tries", "")


# What one looks for in a table that is longer than the screen comes first.
_ORDER = ("running", "failed", "lost", "timeout", "refused", "preempted", "queued", "cancelled", "pending", "finished")


def first_the_live(seen: Sequence[Seen]) -> list[Seen]:
    """Running ones, then those that want something done, then the rest."""
    return sorted(seen, key=lambda one: _ORDER.index(one.state))


def table(seen: Sequence[Seen], height: int | None = None) -> str:
    """A line a run, and how many are in which state; of more than `height` lines the first."""
    if not seen:
        return "no runs"
    several = len({one.study for one in seen}) > 1
    number = len(seen) if height is None or len(seen) + 4 <= height else max(1, height - 5)
    rows = [COLUMNS, *(_row(one, several) for one in seen[:number])]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS) - 1)]
    lines = [
        "  ".join([*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows
    ]
    if number < len(seen):
        lines.append(f"… and {len(seen) - number} more")
    counts = Counter(one.state for one in seen)
    total = ", ".join(f"{counts[name]} {name}" for name in state.STATES if counts[name])
    return "\n".join([*lines, "", f"{len(seen)} runs: {total}"])


def _row(one: Seen, several: bool) -> tuple[str, ...]:
    mean = next((f"{100 * value:.1f} %" for key, value in one.metrics.items() if "/mean@" in key), "")
    kl = one.metrics.get("divergence/reverse_kl")
    return (
        f"{one.study}/{one.run}" if several else one.run,
        one.state,
        f"{one.step}/{one.num_steps}" if one.num_steps else "",
        mean,
        "" if kl is None else f"{kl:.4f}",
        "" if one.left is None else cli.hours(one.left),
        one.job or "",
        one.node or "",
        str(one.attempts or ""),
        "; ".join(text for text in (one.error, one.note) if text),
    )


if __name__ == "__main__":
    cli.run(main)
