"""Cancel runs: `python -m sweeps.cancel study=NAME [state=queued,running] [name=…] [seed=…] [run=ID] [--dry-run]`.

A queued run does not start, a running one saves a checkpoint and stops. `python -m sweeps.submit` continues them.
"""

from collections.abc import Sequence
from contextlib import nullcontext

from opd.cli import key_values
from opd.errors import UserError
from opd.printable import say
from sweeps import cli, executor, selection
from sweeps.ledger import Ledger
from sweeps.run_state import RunState
from sweeps.selection import KEYS

FLAGS = {"--dry-run": "lists the runs and cancels none"}


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, rest = cli.flags(arguments, FLAGS)
    given = key_values(rest, KEYS)
    if "study" not in given:
        raise UserError("study: is missing; name the study whose runs to cancel, as study=NAME")
    (ledger,) = selection.studies(given)
    dry_run = "--dry-run" in flags
    with nullcontext() if dry_run else ledger.lock():
        ledger.submissions()  # refuses a damaged ledger
        runs = [run for run in selection.runs(ledger, given) if run.live]
        if not dry_run:
            cancel(ledger, runs)
    for run in runs:
        say(f"  {run.run}: {run.state}")
    print(f"{'would end' if dry_run else 'ended'} {len(runs)} runs")


def cancel(ledger: Ledger, runs: Sequence[RunState]) -> None:
    """Cancel queued and running runs. The lock must be held.

    Raises:
        UserError: where the scheduler does not answer, or a run was not submitted by a sweep.
    """
    owners = ledger.owners()
    if foreign := [run.run for run in runs if run.run not in owners]:
        raise UserError(f"{foreign[0]}: was not submitted by a sweep; end its process instead")
    submissions = {owners[run.run][0].id: owners[run.run][0] for run in runs}
    for submission in submissions.values():
        names = [run.run for run in runs if owners[run.run][0] is submission]
        # Recorded first: a task that the scheduler ends is then known to be cancelled.
        ledger.append("cancelled", submission=submission.id, runs=names)
        scheduler = executor.get(submission.cluster)
        try:
            scheduler.cancel(submission, names)
        except executor.Unavailable as error:
            raise UserError(
                f"{scheduler.name} does not answer ({error}), and its jobs continue; try again when it does"
            ) from None


if __name__ == "__main__":
    cli.run(main)
