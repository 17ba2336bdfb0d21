"""What observes a run: progress, tracker, profiler. None of it changes a number."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from opd.step.run import Run
from opd.watch.profile import profiled
from opd.watch.progress import show_progress
from opd.watch.tracker import Tracker


@contextmanager
def observe(run: Run, tracker: Tracker) -> Iterator[Callable[[Run, int, Mapping[str, Any]], None]]:
    """Observes the run while it is open; call what it yields with every recorded line of metrics."""
    callbacks: list[Callable[[Run, int, Mapping[str, Any]], None]] = []
    with ExitStack() as stack:
        if run.config.profile:
            end_step = stack.enter_context(profiled(run.stage_hooks, run.ranks, run.folder.trace_file(run.ranks.rank)))
            callbacks.append(lambda run, number, line: end_step() if number else None)
        if run.ranks.main:
            progress = stack.enter_context(show_progress(run.num_steps))
            run.stage_hooks.append(progress.stage)
            run.listeners.append(progress.answered)
            run.pages.listeners.append(tracker.page)
            callbacks += [progress.report, lambda run, number, line: tracker.log(line)]

        def report(run: Run, number: int, line: Mapping[str, Any]) -> None:
            for callback in callbacks:
                callback(run, number, line)

        yield report
