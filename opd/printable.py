"""Text for a terminal. What records, models and servers wrote may hold escape sequences, which a terminal would act on:
it would move the cursor, rename its window, or type.
"""

import re
import sys

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
