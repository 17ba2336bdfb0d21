"""Submit a sweep: `python -m sweeps.submit +sweep=NAME [cluster=local|slurm] [scale=NAME] [overrides] [--dry-run]`.

Every run is composed and checked first; if one may not start, none is submitted. Runs that are finished, running or
queued are left alone, so the same command may be given again at any time; so are those whose results stand in a study's
exports, with sweep.exports=[DIR]. Returns at once.
"""

import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from opd.config import words
from opd.errors import UserError
from opd.records.files import RecordError
from opd.records.run_dir import RunDir
from sweeps import cli, cluster, compose, executor, snapshot, state, submission
from sweeps.executor import Settings
from sweeps.ledger import Ledger
from sweeps.plan import Plan, Planned, plan
from sweeps.run_state import RunState

FLAGS = {
    "--dry-run": "shows the plan and submits nothing",
    "--new-code": "continues a study that was begun with other code with this checkout's",
}
_TIMES = ("time/step", "time/evaluate")


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, given = cli.flags(arguments, FLAGS)
    cluster_arguments, typed = cluster.split(given)
    overrides = words.as_read(typed, multirun=False)
    settings = cluster.load(cluster_arguments)
    dry_run = "--dry-run" in flags
    array_size = None if dry_run else executor.get(settings.kind).max_array_size()
    with compose.composer() as composer:
        planned = plan(composer, overrides, ranks=settings.ranks)
    planned.refuse_bad()
    exported = _exported(planned)
    ledger, ids = Ledger(planned.study), [run.id for run in planned.runs]
    if dry_run:
        show(planned, settings, state.read(ledger, ids).runs, exported)
        return
    with ledger.lock():
        submission.recover(ledger)
        to_do = show(planned, settings, state.read(ledger, ids).runs, exported)
        if not to_do:
            return
        code = snapshot.current()
        if "--new-code" not in flags:
            submission.check_same_code(ledger, code)
        runs = [(run.id, run.config) for run in to_do]
        name = submission.submit_runs(ledger, settings, planned.sweep.name, runs, code, array_size)
    print(f"submitted {len(to_do)} runs as {name}; python -m sweeps.status shows their progress")


def _exported(planned: Plan) -> set[str]:
    """The runs that exported studies hold, finished and evaluated."""
    found: set[str] = set()
    for name in planned.sweep.exports:
        from analysis.pack import opened
        from analysis.studies import counted_runs
        from analysis.study_schema import studies

        with opened(Path(name)) as folder:
            if not studies(folder):
                raise UserError(
                    f"sweep.exports: {name} holds no exported study; make one with python -m analysis.study"
                )
            try:
                found |= counted_runs(folder)
            except RecordError as error:
                raise UserError(f"sweep.exports: {name}: {error}") from error
    return found


def show(
    planned: Plan, settings: Settings, states: Sequence[RunState], exported: Collection[str] = ()
) -> list[Planned]:
    """Print the plan; the runs to submit."""
    of, scheduler = {run.run: run for run in states}, executor.get(settings.kind)
    parts: dict[str, list[Planned]] = {"finished": [], "exported": [], "live": [], "failed": [], "to do": []}
    for run in planned.runs:
        now = of[run.id]
        kind = "live" if now.live else "failed" if now.state in ("failed", "refused") else now.state
        kind = "exported" if run.id in exported and kind not in ("finished", "live") else kind
        parts.get(kind, parts["to do"]).append(run)
    seeds = planned.sweep.seeds
    print(f"sweep {planned.sweep.name}: {planned.num_arms} arms × {len(seeds)} seeds, {len(planned.runs)} runs")
    print(f"  study      {planned.study}")
    print(f"  finished   {len(parts['finished'])}")
    if parts["exported"]:
        print(f"  exported   {len(parts['exported'])}, whose results stand in {', '.join(planned.sweep.exports)}")
    print(f"  running    {len(parts['live'])}, including queued ones")
    if parts["failed"]:
        print(f"  failed     {len(parts['failed'])}, left alone; python -m sweeps.resubmit retries them")
    print(f"  to do      {len(parts['to do'])}")
    print(f"  where      {scheduler.describe(settings)}")
    print(f"  GPU-hours  {estimate(planned, parts['to do'], of, settings)}")
    for note in planned.notes:
        print(f"  note       {note}")
    return parts["to do"]


def estimate(planned: Plan, to_do: Sequence[Planned], states: Mapping[str, RunState], settings: Settings) -> str:
    """GPU-hours of the runs to do, by the time that steps of this sweep's runs have taken so far."""
    known = []
    for run in planned.runs:
        now = states[run.id]
        if now.num_steps and (lines := _metrics(planned.study / run.id)):
            # The times of the stages of a step, and of an evaluation, are contained in these.
            steps = [sum(line.get(key) or 0.0 for key in _TIMES) for line in lines if line["step"]]
            known += [statistics.fmean(steps) * now.num_steps] if steps else []
        if len(known) == 8:
            break
    if not known:
        return "unknown until a run of this sweep has made a step"
    device = executor.get(settings.kind).device(settings)
    total = statistics.median(known) * len(to_do) * settings.ranks / 3600
    return f"about {total:.3g} {device}-hours ({cli.duration(statistics.median(known))} a run)"


def _metrics(folder: Path) -> list[dict]:
    try:
        return RunDir(folder).metrics()
    except RecordError:
        return []


if __name__ == "__main__":
    cli.run(main)
