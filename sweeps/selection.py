"""The studies, and the runs in them, that a command's `key=value` arguments select."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from opd.errors import UserError
from sweeps import state
from sweeps.ledger import Ledger
from sweeps.run_state import STATES, RunState

KEYS = ("study", "paths.outputs", "state", "name", "seed", "run")


def studies(given: Mapping[str, str]) -> list[Ledger]:
    """The studies in `paths.outputs`, or the one named by `study`.

    Raises:
        UserError: where there is none.
    """
    outputs, study = given.get("paths.outputs", "outputs"), given.get("study")
    root = Path(outputs)
    if not outputs or not root.is_dir():
        raise UserError(f"paths.outputs={outputs}: there is no such folder")
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    ledgers = [Ledger(folder) for folder in folders if study in (None, folder.name)]
    if not ledgers:
        names = ", ".join(folder.name for folder in folders) or "none"
        raise UserError(
            f"study={study}: there is no such study in {outputs}; there are {names}"
            if study
            else f"{outputs}: contains no study"
        )
    return ledgers


def runs(ledger: Ledger, given: Mapping[str, str]) -> list[RunState]:
    """`select` from the current state of a study, without metrics."""
    return select(state.read(ledger, metrics=False).runs, given)


def select(candidates: Sequence[RunState], given: Mapping[str, str]) -> list[RunState]:
    """The runs that match `state=failed,lost`, `name=kl_*`, `seed=0,1` and `run=ID` (or the start of one).

    Raises:
        UserError: for an unknown state, a seed that is not a number, or where a name, seed or id matches no run.
    """
    states = given["state"].split(",") if "state" in given else list(STATES)
    if wrong := [one for one in states if one not in STATES]:
        raise UserError(f"state={wrong[0]}: there is no such state; there are {', '.join(STATES)}")
    seeds = given["seed"].split(",") if "seed" in given else None
    if wrong := [seed for seed in seeds or [] if not seed.isdecimal()]:
        raise UserError(f"seed={wrong[0]}: is not a seed; give whole numbers, as in seed=0,1")
    selected = [
        run
        for run in candidates
        if run.state in states
        and any(fnmatchcase(run.name, pattern) for pattern in given.get("name", "*").split(","))
        and (seeds is None or str(run.seed) in seeds)
        and run.run.startswith(given.get("run", ""))
    ]
    if not selected and any(key in given for key in ("name", "seed", "run")):
        filters = " ".join(f"{key}={given[key]}" for key in ("name", "seed", "run", "state") if key in given)
        raise UserError(f"{filters}: no run matches")
    return selected
