"""From a plan to an executor, such that a command that dies on the way leaves nothing running that is not recorded."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opd.config.places import ROOT
from opd.errors import UserError
from sweeps import executor, snapshot
from sweeps.executor import Settings
from sweeps.ledger import Ledger, Submission, new_id, read_submission, write_submission
from sweeps.snapshot import Code


def check_same_code(ledger: Ledger, code: Code) -> None:
    """Raise `UserError` where the study's last submission was of other code."""
    earlier = [one for one in ledger.submissions() if one.abandoned is None]
    if earlier and earlier[-1].code != code.hash:
        raise UserError(
            f"study={ledger.study.name}: its last submission, {earlier[-1].id}, ran other code ({earlier[-1].code}, "
            f"and this is {code.hash}); give study=ANOTHER, or --new-code to run the rest of this study with this code"
        )


def submit_runs(
    ledger: Ledger,
    settings: Settings,
    sweep: str,
    runs: Sequence[tuple[str, Mapping[str, Any]]],
    code: Code,
    array_size: int | None,
) -> str:
    """Submit runs (id and config) in arrays of `array_size` at most; the submission's id. The lock must be held.

    Raises:
        UserError: where the scheduler refuses; the ledger then has what it accepted.
    """
    name, ids = new_id(), [run for run, _ in runs]
    copy = snapshot.take(code, ledger.folder / "code")
    write_submission(ledger.submission_folder(name), vars(settings), ids, [config for _, config in runs], code.hash)
    intent = {"sweep": sweep, "cluster": settings.kind, "code": code.hash, "runs": ids}
    ledger.append("intent", submission=name, **intent, portion=min(len(runs), array_size or len(runs)))
    submission = ledger.submission(name)
    assert submission is not None
    handed_over = False
    try:
        for handle in executor.get(settings.kind).submit(settings, submission, environment(copy)):
            ledger.append("submitted", submission=name, **asdict(handle))
            handed_over = True
    except UserError as error:
        if not handed_over:
            ledger.append("abandoned", submission=name, reason=str(error))
        raise
    return name


def environment(code: Path) -> dict[str, str]:
    """The variables that make a process run a copy of the code, whatever folder it is in."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    kept = [path for path in others if Path(path).resolve() != ROOT and ".sweep" not in Path(path).parts]
    return {"PYTHONPATH": os.pathsep.join([str(code.absolute()), *kept]), "PYTHONSAFEPATH": "1"}


def recover(ledger: Ledger) -> None:
    """Find out what was handed over of submissions whose command died before recording it. The lock must be held.

    Raises:
        UserError: where a scheduler must be asked and does not answer, or the ledger has lost a submission.
        RecordError: where such a submission is damaged.
    """
    known = {one.id: one for one in ledger.submissions()}
    for one in known.values():
        if one.submitted or one.abandoned:
            continue
        scheduler = executor.get(one.cluster)
        try:
            handle = scheduler.recover(one)
        except executor.Unavailable as error:
            raise UserError(
                f"submission {one.id} was interrupted, and {scheduler.name} does not answer ({error}); try again when "
                "it does"
            ) from None
        if handle is not None:
            ledger.append("submitted", submission=one.id, **asdict(handle))
        else:
            ledger.append("abandoned", submission=one.id, reason="its command died before it was handed over")
    for folder in (ledger.folder / "submissions").glob("*"):
        if folder.name in known:
            continue
        if any((folder / "attempts").glob("*")) or _was_handed_over(folder):
            raise UserError(
                f"{ledger.file}: has no submission {folder.name}, whose runs have started or are queued; restore the "
                "ledger, or end them and give study=ANOTHER"
            )
        shutil.rmtree(folder)  # its command died before it wrote the intent


def _was_handed_over(folder: Path) -> bool:
    """Whether a scheduler has the runs of a submission that the ledger does not have; see `recover`."""
    if not (folder / "tasks.json").exists():
        return False  # it is written last
    runs, cluster = read_submission(folder)
    scheduler = executor.get(cluster["kind"])
    lost = Submission(folder.name, folder, "", cluster["kind"], "", "", runs, portion=max(len(runs), 1))
    try:
        return scheduler.recover(lost) is not None
    except executor.Unavailable as error:
        raise UserError(
            f"the ledger has no submission {folder.name}, and {scheduler.name} does not answer whether it "
            f"has its runs ({error}); try again when it does"
        ) from None
