"""Processes that cost no imports: forked from a server that has imported what the tests need, and has run nothing."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.forkserver import ensure_running
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


def run_ranks(work: Callable[..., None], arguments: tuple[Any, ...], size: int) -> None:
    """`work(rank, *arguments)` in a process for each rank; returns when all have ended, raises what one raises."""
    from torch.multiprocessing.spawn import start_processes

    start_server()
    start_processes(work, arguments, nprocs=size, start_method="forkserver")
