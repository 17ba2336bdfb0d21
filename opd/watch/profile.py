"""`profile=true`: a trace of two steps by torch's profiler, with the run's stages, for https://ui.perfetto.dev."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from opd.printable import warn
from opd.ranks.dist import Ranks

SKIPPED, WARM_UP, RECORDED = 1, 1, 2  # steps of this process


@contextmanager
def profiled(
    stage_hooks: list[Callable[[str], AbstractContextManager[Any]]], ranks: Ranks, file: Path
) -> Iterator[Callable[[], None]]:
    """Traces the third and fourth step within this context; yields a function to call after each step.

    `stage_hooks`: called with a stage's name for a context manager around the stage.
    """
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
        stage_hooks.append(record_function)
        yield trace.step
        stage_hooks.remove(record_function)
    if ranks.main and not written:
        first = SKIPPED + WARM_UP + 1
        warn(f"profile: no trace, because it begins at step {first} of a process")
