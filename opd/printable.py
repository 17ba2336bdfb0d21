"""Text for a terminal. What records, models and servers wrote may hold escape sequences, which a terminal would act on:
it would move the cursor, rename its window, or type.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

# Control characters, lone surrogates, invisible characters and marks that turn the writing direction.
_UNPRINTABLE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff"
)
_IN_A_LINE, _IN_TEXT = re.compile(f"[\t\n{_UNPRINTABLE}]"), re.compile(f"[{_UNPRINTABLE}]")


def printable(text: str, *, limit: int) -> str:
    """`text` on one line and no longer than `limit`, with U+FFFD for characters that are invisible or misleading."""
    text = " ".join(text[: 4 * limit + 100].split())
    return _IN_A_LINE.sub("\ufffd", text if len(text) <= limit else text[: limit - 1] + "…")


def printable_text(text: str) -> str:
    """`text` with its lines and tabs, and U+FFFD for characters that are invisible or misleading."""
    return _IN_TEXT.sub("\ufffd", text)


def say(text: str) -> None:
    """Prints `text` for the user at once, whoever wrote it."""
    print(printable_text(text), flush=True)


def warn(sentence: str) -> None:
    """Prints a warning to stderr, whoever wrote it."""
    print(f"opd: warning: {printable_text(sentence)}", file=sys.stderr, flush=True)


class Lasting:
    """A text stream that goes on into nothing when its reader, such as `head` or a terminal, has exited."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._redirected():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._redirected():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _redirected(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within the context nothing fails because nobody reads what is printed any more."""
    streams: Any = Lasting(sys.stdout), Lasting(sys.stderr)
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        yield
