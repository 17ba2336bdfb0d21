"""One thread beside the training: one task at a time, in order, and no failure is lost."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


class Background:
    """Runs tasks in a thread, or at once unless `asynchronous`."""

    def __init__(self, *, asynchronous: bool):
        self._pool = ThreadPoolExecutor(max_workers=1) if asynchronous else None
        self._task: Future[Any] | None = None

    @property
    def failed(self) -> bool:
        """Whether the last task has failed and its error was not raised yet."""
        return self._task is not None and self._task.done() and self._task.exception() is not None

    def submit(self, task: Callable[[], None]) -> None:
        """Starts `task` once the one before it is done.

        Raises:
            what the one before it raised; `task` is then not started.
        """
        self.wait()
        if self._pool is None:
            task()
        else:
            self._task = self._pool.submit(task)

    def wait(self) -> None:
        """Waits for the task under way; raises what it raised."""
        if self._task is not None:
            task, self._task = self._task, None
            task.result()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        if error is None:  # otherwise what ended the run is the error to report
            self.wait()
