"""The lock of a run's directory, which a process holds while it writes there."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from opd.errors import UserError
from opd.records.files import make_folder

# What a run that was refused may have left beside its records.
_NO_RECORDS = {".lock", "wandb"}


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's directory, made where it is missing; removes it again if no record came into it.

    Raises:
        UserError: where another process has the lock.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    # Commands that check whether the run is alive take the lock for a moment.
    lock = FileLock(folder / ".lock", timeout=1)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another process is running this run; wait for it or stop it") from None
    try:
        yield
    finally:
        with suppress(OSError):  # it was moved away
            if folder in new and {path.name for path in folder.iterdir()} <= _NO_RECORDS:
                _remove(new)
        lock.release()


def _remove(new: Sequence[Path]) -> None:
    shutil.rmtree(new[0], ignore_errors=True)
    for path in new[1:]:
        path.rmdir()  # fails where another run has come into it
