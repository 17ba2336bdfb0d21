"""From a plan to a scheduler, such that a command that dies anywhere on the way leaves nothing running unknown."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opd.config.places import ROOT
from opd.errors import UserError
from sweeps import local, slurm, snapshot
from sweeps.cluster import Cluster, Slurm
from sweeps.ledger import Ledger, new_id, write_submission
from sweeps.snapshot import Code


def same_code(book: Ledger, code: Code, new_code: bool) -> None:
    """Holds that a study's runs are of one state of the code.

    Raises:
        UserError: where earlier submissions were of another, unless `new_code`.
    """
    earlier = [one for one in book.submissions() if one.abandoned is None]
    if not earlier or earlier[-1].code == code.hash or new_code:
        return
    raise UserError(
        f"study={book.study.name}: its last submission, {earlier[-1].id}, was of other code ({earlier[-1].code}, and "
        f"this is {code.hash}); give study=ANOTHER, or --new-code to let its other runs be of this code"
    )


def hand_over(
    book: Ledger, where: Cluster, sweep: str, runs: Sequence[tuple[str, Mapping[str, Any]]], code: Code, largest: int
) -> str:
    """Submits runs (id and config); returns the submission's id. The lock must be held.

    `largest` is the most tasks that one array may have.

    Raises:
        UserError: where the scheduler refuses; the ledger then knows what it took.
    """
    submission = new_id()
    folder, names = book.submission_folder(submission), [run for run, _ in runs]
    where_code = snapshot.take(code, book.folder / "code")
    portion = min(len(runs), largest or len(runs))
    write_submission(folder, asdict(where), names, [config for _, config in runs], code.hash)
    book.append(
        "intent", submission=submission, sweep=sweep, cluster=where.kind, code=code.hash, runs=names, portion=portion
    )
    try:
        if isinstance(where, Slurm):
            _to_slurm(book, where, submission, folder, where_code, len(runs), portion)
        else:
            pid = local.start(folder, dict(os.environ) | environment(where_code))
            book.append("submitted", submission=submission, jobs=[], pid=pid, host=os.uname().nodename)
    except UserError as error:
        if not {one.id: one for one in book.submissions()}[submission].submitted:
            book.append("abandoned", submission=submission, reason=str(error))
        raise
    return submission


def _to_slurm(book: Ledger, where: Slurm, submission: str, folder: Path, code: Path, number: int, portion: int) -> None:
    jobs: list[tuple[str, int, int]] = []
    for place, first in enumerate(range(0, number, portion)):
        tasks = min(portion, number - first)
        job = slurm.submit(
            where,
            name=_job_name(submission, place),
            command=[slurm.python(where), "-P", "-m", "sweeps.task", str(folder.absolute()), str(first)],
            environment=environment(code),
            folder=folder.absolute(),
            tasks=tasks,
            after=jobs[-1][0] if jobs else None,
        )
        jobs.append((job, first, tasks))
        book.append("submitted", submission=submission, jobs=jobs, pid=None, host=None)


def _job_name(submission: str, place: int) -> str:
    return f"opd-{submission}-{place}"


def environment(code: Path) -> dict[str, str]:
    """What makes a process run a copy of the code, whatever folder it is in."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    kept = [path for path in others if Path(path).resolve() != ROOT and ".sweep" not in Path(path).parts]
    return {"PYTHONPATH": os.pathsep.join([str(code.absolute()), *kept]), "PYTHONSAFEPATH": "1"}


def recover(book: Ledger) -> None:
    """Settles submissions whose command died between intent and hand-over. The lock must be held.

    Raises:
        UserError: where SLURM must be asked and does not answer, or the ledger has lost a submission.
    """
    known = {one.id: one for one in book.submissions()}
    for one in known.values():
        if one.submitted or one.abandoned:
            continue
        if one.cluster == "slurm":
            if jobs := _taken(one.id, len(one.runs), one.portion):
                book.append("submitted", submission=one.id, jobs=jobs, pid=None, host=None)
                continue
        elif local.began(book.submission_folder(one.id)):
            book.append("submitted", submission=one.id, jobs=[], pid=0, host=os.uname().nodename)
            continue
        book.append("abandoned", submission=one.id, reason="its command died before it was handed over")
    for folder in (book.folder / "submissions").glob("*"):
        if folder.name in known:
            continue
        if any((folder / "attempts").glob("*")):
            raise UserError(
                f"{book.file}: knows nothing of submission {folder.name}, whose runs have begun; put the ledger back, "
                "or give study=ANOTHER"
            )
        shutil.rmtree(folder)  # its command died before it said what it was about to do


def _taken(submission: str, number: int, portion: int) -> list[tuple[str, int, int]]:
    """The arrays of a submission that SLURM took."""
    jobs = []
    for place, first in enumerate(range(0, number, portion)):
        try:
            found = slurm.named(_job_name(submission, place))
        except slurm.Unanswered as error:
            raise UserError(
                f"submission {submission} was interrupted, and SLURM does not answer ({error}); try again when it does"
            ) from None
        if found:
            jobs.append((found[-1], first, min(portion, number - first)))
    return jobs
