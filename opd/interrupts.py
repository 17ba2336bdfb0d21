"""Signals that end a command: gracefully where there is something to save, quietly where there is not."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # the exit status of a command that Ctrl-C has ended
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: not done, try again


class Interrupted(KeyboardInterrupt):
    """A Ctrl-C that ended a command at once; its text is a sentence on what is kept."""


def end_quietly() -> None:
    """From here on a Ctrl-C ends the process at once, without a traceback: nothing has begun, or nothing is left."""
    signal.signal(signal.SIGINT, _leave)


def _leave(*_: object) -> None:
    os._exit(INTERRUPTED)


def end_quietly_as_command() -> None:
    """`end_quietly` while `python -m` looks for the module, that is, before its imports, which take seconds."""
    if sys.argv[0] == "-m":
        end_quietly()


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the context a Ctrl-C raises `KeyboardInterrupt`; after one, the next ends the process at once."""
    after = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        after = _leave
        raise
    finally:
        signal.signal(signal.SIGINT, after)


class StopOnSignal:
    """Within the context SIGTERM, SIGUSR2, SIGHUP and a Ctrl-C ask to stop; called, it says whether one came.

    A second Ctrl-C, or one before `begin`, raises `KeyboardInterrupt`; the next ends the process at once. A SIGHUP that
    is ignored, as nohup has it, stays ignored. `until`: what the signal waits for, as a clause.
    """

    signals = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)

    def __init__(self, until: str):
        self.until, self.received, self.begun, self.before = until, False, False, {}

    def __enter__(self) -> "StopOnSignal":
        for number in self.signals:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            end_quietly()

    def __call__(self) -> bool:
        return self.received

    def begin(self) -> None:
        """From here on there is something to save."""
        self.begun = True

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and (self.received or not self.begun):
            end_quietly()
            raise KeyboardInterrupt
        self.received = True
        said = f"opd: {signal.Signals(number).name}: stopping {self.until if self.begun else 'before it begins'}\n"
        os.write(2, said.encode())  # the handler may have interrupted a print
