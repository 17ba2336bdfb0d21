"""`profile=true`: a trace of a few steps by torch's profiler, with the run's stages in it, for https://ui.perfetto.dev."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from opd.ranks.dist import Ranks

SKIPPED, WARM_UP, RECORDED = 1, 1, 2  # steps of this process


@contextmanager
def profiled(
    entering: list[Callable[[str], AbstractContextManager[Any]]], ranks: Ranks, file: Path
) -> Iterator[Callable[[], None]]:
    """Records steps 3 and 4 that are made while it holds; what it gives is to be called after each step."""
    from torch.profiler import ProfilerActivity, profile, record_function, schedule

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ranks.device.type == "cuda" else [])]
    written: list[Path] = []

    def write(trace: profile) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(file))
        written.append(file)

    with profile(
        activities=activities,
        schedule=schedule(skip_first=SKIPPED, wait=0, warmup=WARM_UP, active=RECORDED, repeat=1),
        on_trace_ready=write,
    ) as trace:
        entering.append(record_function)
        yield trace.step
        entering.remove(record_function)
    if ranks.main and not written:
        first = SKIPPED + WARM_UP + 1
        print(f"opd: warning: profile: there is no trace, for it begins at step {first} of a process", file=sys.stderr)
