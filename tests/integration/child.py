"""A run in a process of its own that can be killed; everything slow is imported here, before children are forked."""

import os
import signal
import sys
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import transformers.models.qwen3.modeling_qwen3  # noqa: F401

import opd.assemble
import opd.loop
import opd.manifest  # noqa: F401
from opd import cli, recorded
from opd.config import RunConfig
from opd.train import _main, train


def run(config: RunConfig, kill_at: int | None, writes: "Synchronized[int] | None") -> None:
    """One run; the `kill_at`-th flush or rename of a file is not made: the process is killed there."""
    calls = 0

    def interrupted(call):
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, interrupted(getattr(os, name)))
    train(config)
    if writes is not None:
        writes.value = calls


def train_command(place: Path, arguments: list[str]) -> None:
    """`python -m opd.train` with these arguments in the folder `place`."""
    os.chdir(place)
    sys.argv[1:] = arguments
    cli.main(_main, recorded.arguments)
