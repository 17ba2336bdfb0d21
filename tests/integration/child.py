"""A run in a process of its own that can be killed; everything slow is imported here, before children are forked."""

import os
import runpy
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import transformers.models.qwen3.modeling_qwen3  # noqa: F401

from opd.config.schema import RunConfig
from opd.train import train


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


def module(name: str, arguments: Sequence[str], said: Path, cwd: Path, env: Mapping[str, str]) -> None:
    """`python -m NAME ARGUMENTS`, which prints into said.out and said.err, and reads said.in if there is one."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if (given := said.with_suffix(".in")).exists():
        sys.stdin = os.fdopen(os.open(given, os.O_RDONLY))  # multiprocessing has put /dev/null in its place
    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(said.with_suffix(suffix), os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv = [name, *arguments]
    sys.modules.pop(name, None)  # as where nothing has imported it: it is to be the main module
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def command(arguments: list[str], said: Path) -> None:
    """`python -m opd.train ARGUMENTS` in the folder of `said`."""
    module("opd.train", arguments, said, said.parent, os.environ.copy())


def rank(number: int, size: int, port: int, arguments: list[str], folder: Path) -> None:
    """One rank of the command, as torchrun starts it; prints into rank_<number>.out and .err of the folder."""
    os.environ.update(
        RANK=str(number), WORLD_SIZE=str(size), LOCAL_RANK=str(number), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    command(arguments, folder / f"rank_{number}")


def modules(commands: Sequence[Sequence[str]], said: Path, env: Mapping[str, str]) -> None:
    """`python -m` each command in turn; the n-th prints into said_<n>.out and .err, and leaves its status in .rc."""
    for number, (name, *arguments) in enumerate(commands):
        place = said.with_name(f"{said.name}_{number}")
        try:
            module(name, arguments, place, Path.cwd(), env)
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            status = 3
            traceback.print_exc()
        place.with_suffix(".rc").write_text(str(status))
