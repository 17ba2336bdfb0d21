"""Successive halving: `python -m sweeps.halve study=NAME rungs=30,90 metric='mean@8 last' [keep=1/2] [--watch]`.

A rung is a step. Of the arms that passed the previous rung, the best share `keep`, by the mean over seeds of `metric`
up to this step, continues; the others are cancelled, each as soon as enough better ones have passed. What is stopped
depends only on the records, not on which arm ran first. Failed arms count as the worst.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

from opd.cli import key_values
from opd.errors import UserError
from sweeps import cli, selection, state
from sweeps.cancel import cancel
from sweeps.ledger import Ledger
from sweeps.run_state import RunState
from sweeps.score import mean, parse, score
from sweeps.status import INTERVAL

FLAGS = {"--dry-run": "lists the runs and ends none", "--watch": "repeats until no run is queued or running"}
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
    rungs, keep = _rungs(given["rungs"]), _share(given.get("keep", "1/2"))
    parse(given["metric"])
    (ledger,) = selection.studies(given)
    while True:
        live = halve(ledger, rungs, given["metric"], keep, dry_run="--dry-run" in flags)
        if "--watch" not in flags or not live:
            return
        time.sleep(INTERVAL)


def halve(ledger: Ledger, rungs: Sequence[int], metric: str, keep: float, *, dry_run: bool) -> int:
    """Cancel the queued and running runs of the arms that are out; the number of runs that go on."""
    with ledger.lock():
        runs = state.read(ledger, metrics=False).runs
        arms: dict[str, list[RunState]] = {}
        for run in runs:
            arms.setdefault(run.run.rpartition("-s")[0], []).append(run)
        scores = {arm: [_score_at(ledger, seeds, metric, rung) for rung in rungs] for arm, seeds in arms.items()}
        ended = []
        for out in stopped(scores, rungs, keep):
            for run in arms[out.arm]:
                if run.live:
                    ended.append(run)
                    why = f"{metric} {out.value:.4f} at step {out.rung}, not among the {out.kept} best"
                    print(f"  {run.run}: {why}", flush=True)
        if ended and not dry_run:
            cancel(ledger, ended)
        left = sum(run.live for run in runs) - (0 if dry_run else len(ended))
    print(f"{'would end' if dry_run else 'ended'} {len(ended)} runs, {left} go on", flush=True)
    return left


def stopped(scores: Mapping[str, Sequence[float]], rungs: Sequence[int], keep: float) -> list[Stopped]:
    """The arms that are certain to be out. `scores` has a number per rung for every arm, NaN where it is still open.

    Of n arms at a rung ceil(keep * n) continue; of equal ones those first by name.
    """
    out: dict[str, Stopped] = {}
    through, size = set(scores), len(scores)
    for place, rung in enumerate(rungs):
        size = math.ceil(keep * size)
        left = {arm: scores[arm][place] for arm in scores if arm not in out}
        waiting = sum(map(math.isnan, left.values()))
        ranks = sorted((-value, arm) for arm, value in left.items() if not math.isnan(value))
        # An arm that may still drop out at an earlier rung beats none here; one that is still open may beat all.
        passed = 0
        for value, arm in ranks:
            if passed >= size:
                out[arm] = Stopped(arm, rung, -value, size)
            passed += arm in through
        through &= {arm for better, (_, arm) in enumerate(ranks) if better + waiting < size}
    return list(out.values())


def _score_at(ledger: Ledger, seeds: Sequence[RunState], metric: str, rung: int) -> float:
    """An arm's score at a rung: NaN until all of its seeds are there, -inf where one will never be."""
    if all(run.step >= rung or run.state == "finished" for run in seeds):
        return mean([score(ledger.study / run.run, metric, until=rung) for run in seeds])
    return math.nan if all(run.live or run.state in ("finished", "pending") for run in seeds) else -math.inf


def _rungs(text: str) -> list[int]:
    steps = [int(one) if one.isdecimal() else 0 for one in text.split(",")]
    if steps != sorted(set(steps)) or not steps[0]:
        raise UserError(f"rungs={text}: should be increasing steps, as rungs=30,90")
    return steps


def _share(text: str) -> float:
    share = math.nan
    with suppress(ValueError, ZeroDivisionError):
        share = float(Fraction(text))
    if not 0 < share < 1:
        raise UserError(f"keep={text}: should be a share between 0 and 1, as keep=1/2 or keep=0.3")
    return share


if __name__ == "__main__":
    cli.run(main)
