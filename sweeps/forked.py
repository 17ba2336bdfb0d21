"""A module run in a forked process, which need not import again what this one has imported."""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

HANDLED = {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT}


class Forked:
    """`python -m MODULE ARGUMENTS` in a fork of this process with its own process group; see `subprocess.Popen`.

    This process must have a single thread. Signals that arrive before the module has set its own handlers end the fork.
    """

    def __init__(self, module: str, arguments: Sequence[str]):
        self._process = multiprocessing.get_context("fork").Process(target=_run, args=(module, list(arguments)))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            self._process.start()
            with suppress(OSError):  # the fork has done so itself
                os.setpgid(self.pid, self.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _run(module: str, arguments: list[str]) -> None:
    with suppress(OSError):
        os.setpgid(0, 0)
    for number in HANDLED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    sys.argv = [module, *arguments]
    # multiprocessing skips exit handlers: the fork runs its own here, but not those inherited from this process.
    atexit._clear()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
