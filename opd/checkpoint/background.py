"""Work that is done beside the training: one piece at a time, in order, and its failure is not lost."""

from collections.abc import Callable
from threading import Thread
from types import TracebackType


class Background:
    """Does what it is given in a thread, or at once where it is not `asynchronous`."""

    def __init__(self, *, asynchronous: bool):
        self.asynchronous = asynchronous
        self._thread: Thread | None = None
        self._failure: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether a piece of work has failed and nobody has been told."""
        return self._failure is not None

    def do(self, work: Callable[[], None]) -> None:
        """Begins this piece of work once the one before it is done.

        Raises:
            what that one raised; this one is then not begun.
        """
        self.wait()
        if not self.asynchronous:
            work()
            return
        self._thread = Thread(target=self._try, args=(work,))
        self._thread.start()

    def wait(self) -> None:
        """Waits until nothing is left to do.

        Raises:
            what the work raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failure = error

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:  # what ended the run is the error to report
            self._thread.join()
