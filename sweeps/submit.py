"""Submits a sweep: `python -m sweeps.submit +sweep=NAME [cluster=local|slurm] [scale=NAME] [overrides] [--dry-run]`.

Every run is composed and checked first; where one may not start, none is submitted. What is finished, running or
queued is left alone, so that the same command may be given again at any time. Returns at once.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from opd.records import run_dir as records
from opd.records.run_dir import RunDir
from sweeps import cli, cluster, compose, slurm, snapshot, state
from sweeps.cluster import Cluster, Slurm
from sweeps.handover import hand_over, recover, same_code
from sweeps.ledger import Ledger
from sweeps.plan import Plan, Planned, plan

FLAGS = {
    "--dry-run": "shows the plan and submits nothing",
    "--new-code": "lets a study that was begun with other code go on with this one",
}
_SPENT = ("time/step", "time/evaluate")


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, given = cli.flags(arguments, FLAGS)
    mine, overrides = cluster.split(given)
    where = cluster.read(mine)
    largest = slurm.require() if isinstance(where, Slurm) and "--dry-run" not in flags else 0
    with compose.composer() as composer:
        planned = plan(composer, overrides, ranks=where.ranks)
    planned.refuse_bad()
    book = Ledger(planned.study)
    if "--dry-run" in flags:
        show(planned, where, state.look(book, [run.id for run in planned.runs]).runs)
        return
    with book.lock():
        recover(book)
        seen = state.look(book, [run.id for run in planned.runs])
        to_do = show(planned, where, seen.runs)
        if not to_do:
            return
        code = snapshot.current()
        same_code(book, code, "--new-code" in flags)
        runs = [(run.id, run.config) for run in to_do]
        submission = hand_over(book, where, planned.sweep.name, runs, code, largest)
    print(f"submitted {len(to_do)} runs as {submission}; python -m sweeps.status shows how they fare")


def show(planned: Plan, where: Cluster, seen: Sequence[state.Seen]) -> list[Planned]:
    """Prints the plan; returns the runs to submit."""
    of = {one.run: one for one in seen}
    parts: dict[str, list[Planned]] = {"finished": [], "live": [], "failed": [], "to do": []}
    for run in planned.runs:
        now = of[run.id]
        kind = "live" if now.live else now.state if now.state in ("finished", "failed") else "to do"
        parts["failed" if now.state == "refused" else kind].append(run)
    seeds = planned.sweep.seeds
    print(f"sweep {planned.sweep.name}: {planned.num_arms} arms × {len(seeds)} seeds, {len(planned.runs)} runs")
    print(f"  study      {planned.study}")
    print(f"  finished   {len(parts['finished'])}")
    print(f"  running    {len(parts['live'])}, queued ones too")
    if parts["failed"]:
        print(f"  failed     {len(parts['failed'])}, left alone; python -m sweeps.resubmit tries them again")
    print(f"  to do      {len(parts['to do'])}")
    print(f"  where      {_where(where)}")
    print(f"  GPU-hours  {estimate(planned, parts['to do'], of, where)}")
    for note in planned.notes:
        print(f"  note       {note}")
    return parts["to do"]


def estimate(planned: Plan, to_do: Sequence[Planned], seen: dict[str, state.Seen], where: Cluster) -> str:
    """GPU-hours of the runs to do, by the time that steps of this sweep's runs have taken so far."""
    known = []
    for run in planned.runs:
        now = seen[run.id]
        if now.num_steps and (lines := _metrics(planned.study / run.id)):
            # The stages of a step, and of an evaluation, are in these already.
            steps = [sum(line.get(key) or 0.0 for key in _SPENT) for line in lines if line["step"]]
            known += [statistics.fmean(steps) * now.num_steps] if steps else []
        if len(known) == 8:
            break
    if not known:
        return "unknown until a run of this sweep has made a step"
    kind = "GPU" if isinstance(where, Slurm) and where.gpus_per_rank else "CPU-rank"
    total = statistics.median(known) * len(to_do) * where.ranks / 3600
    return f"about {total:.3g} {kind}-hours ({cli.hours(statistics.median(known))} a run)"


def _metrics(folder: Path) -> list[dict]:
    try:
        return RunDir(folder).metrics()
    except records.RecordError:
        return []


def _where(where: Cluster) -> str:
    if isinstance(where, Slurm):
        place = f"SLURM, {where.nodes} nodes × {where.ranks_per_node} ranks a run, {where.time} min"
        return f"{place}{f', partition {where.partition}' if where.partition else ''}, {where.max_parallel} at once"
    return f"this machine, {where.ranks} ranks a run, {where.max_parallel} at once"


if __name__ == "__main__":
    cli.run(main)
