"""Processes that cost no imports: forked from a server that has imported what the tests need, and has run nothing."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import pytest

FORK = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Starts the server, if there is none, with this process's import path, which Python 3.11 does not hand on."""
    FORK.set_forkserver_preload(["tests.integration.child"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        ensure_running()


def forked(work: Callable[..., None], *arguments: Any) -> Any:
    """The process, begun, that does `work(*arguments)`."""
    start_server()
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def run_module(
    module: str,
    *arguments: str,
    given: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS`, which reads `given`, without the seconds of a start: what it says, how it ends.

    What imports, the import path or Python's exit are about wants a process that is started.
    """
    from tests.integration import child

    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        said.with_suffix(".in").write_text(given)
        process = forked(child.module, module, arguments, said, cwd or Path.cwd(), {**(env or os.environ)})
        process.join(timeout)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            raise subprocess.TimeoutExpired([module, *arguments], timeout)
        out, err = (said.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, out, err)


def run_ranks(work: Callable[..., None], arguments: tuple[Any, ...], size: int) -> None:
    """`work(rank, *arguments)` in a process for each rank; returns when all have ended, raises what one raises."""
    from torch.multiprocessing.spawn import start_processes

    start_server()
    start_processes(work, arguments, nprocs=size, start_method="forkserver")
