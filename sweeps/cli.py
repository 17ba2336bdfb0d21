"""Shared by the commands: flags, and errors as one sentence."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence

from opd.cli import disk_sentence, leave_working_folder_out
from opd.config import plugins
from opd.config.identity import override_as_today
from opd.errors import UserError
from opd.interrupts import INTERRUPTED, interruptible
from opd.printable import printable_text
from opd.records.files import RecordError


def run(command: Callable[[Sequence[str]], None]) -> None:
    """Run a command on this process's arguments; an error that the user can fix is one sentence and exit status 2."""
    leave_working_folder_out()
    try:
        with interruptible():
            words = [override_as_today(text) for text in sys.argv[1:]]
            plugins.use(plugins.named(words))
            command(words)
    except UserError as error:
        _stop(str(error))
    except RecordError as error:
        _stop(f"{error}; restore that record or move it away")
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has exited
        sys.exit(141)
    except KeyboardInterrupt:
        _stop("interrupted; nothing is lost, and the same command continues", INTERRUPTED)
    except OSError as error:
        if (sentence := disk_sentence(error)) is None:
            raise
        _stop(sentence)


def flags(arguments: Sequence[str], known: Mapping[str, str]) -> tuple[set[str], list[str]]:
    """A command's flags and its other arguments; `--help` prints the command's docstring and flags, and exits.

    Raises:
        UserError: for an unknown flag.
    """
    if {"--help", "-h"} & set(arguments):
        module = sys.modules["__main__"]
        print((module.__doc__ or "").strip())
        print("".join(f"\n  {flag:<12} {what}" for flag, what in known.items()))
        sys.exit(0)
    given = {text for text in arguments if text.startswith("-")}
    if wrong := sorted(given - known.keys()):
        raise UserError(f"{wrong[0]}: is not a flag of this command; the flags are {', '.join([*known, '--help'])}")
    return given, [text for text in arguments if text not in given]


def duration(seconds: float) -> str:
    """A duration for display: `40 s`, `12 min`, `3.5 h`."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _stop(sentence: str, status: int = 2) -> None:
    print(f"opd: {printable_text(sentence)}", file=sys.stderr)
    sys.exit(status)
