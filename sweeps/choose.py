"""Which studies, and which of their runs, a command is about."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from opd.errors import UserError
from sweeps.ledger import Ledger
from sweeps.state import STATES, Seen


def studies(outputs: str, study: str | None) -> list[Ledger]:
    """The studies under a folder of outputs, or the one that is named.

    Raises:
        UserError: where there is none.
    """
    root = Path(outputs)
    if not outputs or not root.is_dir():
        raise UserError(f"paths.outputs={outputs}: there is no such folder")
    there = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    found = [Ledger(folder) for folder in there if study in (None, folder.name)]
    if not found:
        names = ", ".join(folder.name for folder in there) or "none"
        raise UserError(
            f"study={study}: there is no such study in {outputs}; there are {names}"
            if study
            else f"{outputs}: holds no study"
        )
    return found


def chosen(seen: Sequence[Seen], given: Mapping[str, str]) -> list[Seen]:
    """The runs that filters leave: `state=failed,lost`, `name=kl_*`, `seed=0,1`, `run=ID` (or the start of one).

    Raises:
        UserError: for a state that there is not, a seed that is none, or filters that leave nothing.
    """
    states = given["state"].split(",") if "state" in given else list(STATES)
    if wrong := [state for state in states if state not in STATES]:
        raise UserError(f"state={wrong[0]}: there is no such state; there are {', '.join(STATES)}")
    seeds = given["seed"].split(",") if "seed" in given else None
    if wrong := [seed for seed in seeds or [] if not seed.isdecimal()]:
        raise UserError(f"seed={wrong[0]}: is no seed; give whole numbers, as seed=0,1")
    found = [
        one
        for one in seen
        if one.state in states
        and any(fnmatchcase(one.name, pattern) for pattern in given.get("name", "*").split(","))
        and (seeds is None or str(one.seed) in seeds)
        and one.run.startswith(given.get("run", ""))
    ]
    if not found and any(key in given for key in ("name", "seed", "run")):
        filters = " ".join(f"{key}={given[key]}" for key in ("name", "seed", "run", "state") if key in given)
        raise UserError(f"{filters}: no run is that")
    return found
