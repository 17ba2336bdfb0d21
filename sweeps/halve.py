"""Successive halving: `python -m sweeps.halve study=NAME rungs=30,90 metric='mean@8 last' [keep=0.5] [--watch]`.

A rung is a step. Of the arms that came through the rung before, the share `keep` that is best there, by the mean over
seeds of `metric` up to that step, goes on; the others are cancelled, each as soon as enough better ones have passed.
What is stopped therefore hangs on the records alone and not on which arm ran first. Arms that fail are among the worse.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opd.cli import key_values
from opd.errors import UserError
from sweeps import choose, cli, state
from sweeps.cancel import cancel
from sweeps.ledger import Ledger
from sweeps.score import mean, parse, score
from sweeps.state import Seen
from sweeps.status import INTERVAL

FLAGS = {"--dry-run": "names the runs and ends none", "--watch": "goes on until no run is queued or runs"}
KEYS = ("study", "paths.outputs", "rungs", "metric", "keep")


@dataclass(frozen=True)
class Stopped:
    """An arm that is not among the `kept` best at a rung."""

    arm: str
    rung: int
    value: float
    kept: int


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, rest = cli.flags(arguments, FLAGS)
    given = key_values(rest, KEYS)
    if missing := [key for key in ("study", "rungs", "metric") if key not in given]:
        raise UserError(f"{missing[0]}: must be given, as in study=NAME rungs=30,90 metric='mean@8 last'")
    rungs, keep = _rungs(given["rungs"]), _keep(given.get("keep", "1/2"))
    parse(given["metric"])
    (book,) = choose.studies(given.get("paths.outputs", "outputs"), given["study"])
    while True:
        live = halve(book, rungs, given["metric"], keep, tell_only="--dry-run" in flags)
        if "--watch" not in flags or not live:
            return
        time.sleep(INTERVAL)


def halve(book: Ledger, rungs: Sequence[int], metric: str, keep: float, *, tell_only: bool) -> int:
    """Cancels what is queued or runs of the arms that are out; returns how many runs are left."""
    with book.lock():
        runs = state.look(book, metrics=False).runs
        arms: dict[str, list[Seen]] = {}
        for one in runs:
            arms.setdefault(one.run.rpartition("-s")[0], []).append(one)
        scores = {arm: [_at(book, seeds, metric, rung) for rung in rungs] for arm, seeds in arms.items()}
        ended = []
        for out in stopped(scores, rungs, keep):
            live = [one for one in arms[out.arm] if one.live]
            ended += live
            for one in live:
                print(
                    f"  {one.run}: {metric} {out.value:.4f} at step {out.rung}, not among the {out.kept} best",
                    flush=True,
                )
        if ended and not tell_only:
            cancel(book, ended)
        left = sum(one.live for one in runs) - (0 if tell_only else len(ended))
    print(f"{'would end' if tell_only else 'ended'} {len(ended)} runs, {left} go on", flush=True)
    return left


def stopped(scores: Mapping[str, Sequence[float]], rungs: Sequence[int], keep: float) -> list[Stopped]:
    """The arms that are certain to be out; `scores` has a number a rung for every arm, NaN where it is yet to come.

    Of n arms in the field at a rung ceil(keep * n) go on. Of equal ones the first by name does.
    """
    out: dict[str, Stopped] = {}
    through, size = set(scores), len(scores)
    for place, rung in enumerate(rungs):
        size = math.ceil(keep * size)
        left = {arm: scores[arm][place] for arm in scores if arm not in out}
        waiting = sum(map(math.isnan, left.values()))
        ranks = sorted((-value, arm) for arm, value in left.items() if not math.isnan(value))
        # An arm that may yet be out at a rung before beats nobody here; one that may yet come may beat everybody.
        passed = 0
        for value, arm in ranks:
            if passed >= size:
                out[arm] = Stopped(arm, rung, -value, size)
            passed += arm in through
        through &= {arm for better, (_, arm) in enumerate(ranks) if better + waiting < size}
    return list(out.values())


def _at(book: Ledger, seeds: Sequence[Seen], metric: str, rung: int) -> float:
    """An arm's score at a rung, once all of its seeds have come that far; less than any where one never will."""
    if all(one.step >= rung or one.state == "finished" for one in seeds):
        return mean([score(book.study / one.run, metric, until=rung) for one in seeds])
    return math.nan if all(one.live or one.state in ("finished", "pending") for one in seeds) else -math.inf


def _rungs(text: str) -> list[int]:
    found = text.split(",")
    if not all(one.isdecimal() and int(one) for one in found) or sorted({int(one) for one in found}) != [
        *map(int, found)
    ]:
        raise UserError(f"rungs={text}: should be steps in rising order, as rungs=30,90")
    return [int(one) for one in found]


def _keep(text: str) -> float:
    over, _, under = text.partition("/")
    try:
        keep = float(over) / float(under or 1)
    except (ValueError, ZeroDivisionError):
        keep = math.nan
    if not 0 < keep < 1:
        raise UserError(f"keep={text}: should be a share between 0 and 1, as keep=1/2 or keep=0.3")
    return keep


if __name__ == "__main__":
    cli.run(main)
