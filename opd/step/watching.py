"""What observes a run: progress, tracker, profiler. None of it changes a number."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from opd.step.run import Run
from opd.watch.profile import profiled
from opd.watch.progress import show_progress
from opd.watch.tracker import Tracker


@contextmanager
def watching(run: Run, tracker: Tracker) -> Iterator[Callable[[Run, int, Mapping[str, Any]], None]]:
    """Observes the run while it is open; call what it yields with every recorded line of metrics."""
    tell: list[Callable[[Run, int, Mapping[str, Any]], None]] = []
    with ExitStack() as held:
        if run.config.profile:
            after = held.enter_context(profiled(run.entering, run.ranks, run.folder.trace_file(run.ranks.rank)))
            tell.append(lambda run, number, line: after() if number else None)
        if run.ranks.main:
            progress = held.enter_context(show_progress(run.num_steps))
            run.entering.append(progress.stage)
            run.pages.listeners.append(tracker.page)
            tell += [progress.report, lambda run, number, line: tracker.log(line)]

        def say(run: Run, number: int, line: Mapping[str, Any]) -> None:
            for each in tell:
                each(run, number, line)

        yield say
