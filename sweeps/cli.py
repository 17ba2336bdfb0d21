"""What this package's commands share: flags, which study, and saying what is wrong in one sentence."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from opd.cli import disk_sentence, leave_working_folder_out
from opd.errors import UserError
from opd.identity import override_as_today
from opd.records import RecordError
from sweeps.ledger import Ledger
from sweeps.state import STATES, Seen


def run(command: Callable[[Sequence[str]], None]) -> None:
    """Runs a command on its arguments; what the user can mend is one sentence on stderr and exit status 2."""
    leave_working_folder_out()
    try:
        command([override_as_today(text) for text in sys.argv[1:]])
    except UserError as error:
        _stop(str(error))
    except RecordError as error:
        _stop(f"{error}; put that record back, or move it away")
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left; so do we
        sys.exit(141)
    except KeyboardInterrupt:
        _stop("interrupted; nothing is lost, and the same command goes on", 130)
    except OSError as error:
        if (said := disk_sentence(error)) is None:
            raise
        _stop(said)


def flags(arguments: Sequence[str], known: Mapping[str, str]) -> tuple[set[str], list[str]]:
    """A command's flags, and its other arguments; `--help` prints what there is and ends.

    Raises:
        UserError: for a flag that the command does not have.
    """
    if {"--help", "-h"} & set(arguments):
        module = sys.modules["__main__"]
        print((module.__doc__ or "").strip())
        print("".join(f"\n  {flag:<12} {what}" for flag, what in known.items()))
        sys.exit(0)
    given = {text for text in arguments if text.startswith("-")}
    if wrong := sorted(given - known.keys()):
        raise UserError(f"{wrong[0]}: is no flag here; there are {', '.join([*known, '--help'])}")
    return given, [text for text in arguments if text not in given]


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


def hours(seconds: float) -> str:
    """A length of time to read: `40 s`, `12 min`, `3.5 h`."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _stop(sentence: str, status: int = 2) -> None:
    print(f"opd: {sentence}", file=sys.stderr)
    sys.exit(status)
