"""Ends runs: `python -m sweeps.cancel study=NAME [state=queued,running] [name=…] [seed=…] [run=ID]`.

A queued run does not start; one that runs saves a checkpoint and leaves. `python -m sweeps.submit` takes them up again.
"""

from collections.abc import Sequence

from opd.cli import key_values
from opd.errors import UserError
from opd.records.run_dir import write_whole
from sweeps import choose, cli, local, slurm, state
from sweeps.ledger import Ledger, Submission
from sweeps.state import Seen

FLAGS = {"--dry-run": "names the runs and ends none"}
KEYS = ("study", "paths.outputs", "state", "name", "seed", "run")


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, rest = cli.flags(arguments, FLAGS)
    given = key_values(rest, KEYS)
    if "study" not in given:
        raise UserError("study: must be named, as study=NAME, for this ends its runs")
    (book,) = choose.studies(given.get("paths.outputs", "outputs"), given["study"])
    if "--dry-run" in flags:
        ended = _live(book, given)
    else:
        with book.lock():
            ended = _live(book, given)
            cancel(book, ended)
    for one in ended:
        print(f"  {one.run}: {one.state}")
    print(f"{'would end' if '--dry-run' in flags else 'ended'} {len(ended)} runs")


def cancel(book: Ledger, runs: Sequence[Seen]) -> None:
    """Ends queued and running runs. The lock must be held.

    Raises:
        UserError: where SLURM does not answer, or a run was started by hand.
    """
    owners: dict[str, tuple[Submission, int]] = {}
    for one in book.submissions():
        if one.abandoned is None:
            owners |= {run: (one, place) for place, run in enumerate(one.runs)}
    if by_hand := [one.run for one in runs if one.run not in owners]:
        raise UserError(f"{by_hand[0]}: was started by hand; end its process instead")
    of: dict[str, list[str]] = {}
    for one in runs:
        of.setdefault(owners[one.run][0].id, []).append(one.run)
    for submission, names in of.items():
        # Said first: a task that SLURM ends is then known to be ended by us.
        book.append("cancelled", submission=submission, runs=names)
        owner = owners[names[0]][0]
        if owner.cluster == "slurm":
            try:
                slurm.cancel([job for name in names if (job := owner.job_of(owners[name][1]))])
            except slurm.Unanswered as error:
                raise UserError(
                    f"SLURM does not answer ({error}), and its jobs go on; try again when it does"
                ) from None
        else:
            folder = book.submission_folder(submission)
            write_whole(folder / "cancelled", "\n".join(sorted(local.cancelled(folder) | set(names))) + "\n")


def _live(book: Ledger, given: dict[str, str]) -> list[Seen]:
    return [one for one in choose.chosen(state.look(book, metrics=False).runs, given) if one.live]


if __name__ == "__main__":
    cli.run(main)
