"""Chat templates: programs that come with a tokenizer and write its conversations. They run in a sandbox, within
limits of time and length, and the date that they see is that of the run's start.
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any

from opd.data.environment import Message
from opd.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For one conversation, which takes a template well below a millisecond: seconds of this process's own computing, which
# a busy machine does not lengthen; characters that a template may add, and copies that it may make of each.
SECONDS, ADDED, COPIES = 5.0, 200_000, 10

# An answer that no template writes itself.
_ANSWER = "the sum is two"

# The only way by which a template can learn the time (transformers defines it).
_CLOCK = "strftime_now"


def render(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Sequence[Message]],
    *,
    key: str,
    date: datetime | None,
    opened: bool = True,
) -> list[str]:
    """The text of each conversation; `opened`: with the beginning of the model's next turn.

    `key` is the setting to name in a refusal, `date` the time that a template which asks for it gets (None: now).

    Raises:
        UserError: where there is no template, or it refuses the turns, fails, or exceeds a limit.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{key}=chat: the student's tokenizer has no chat template; use {key}=raw")
    clock: Any = {_CLOCK: (date or datetime.now()).strftime}
    texts = []
    try:
        for turns in conversations:
            conversation: Any = [*turns]
            with _limited():
                text = tokenizer.apply_chat_template(
                    conversation, add_generation_prompt=opened, tokenize=False, **clock
                )
            if len(str(text)) > ADDED + COPIES * sum(len(turn["content"]) for turn in turns):
                raise ValueError(f"it writes {len(str(text)):,} characters for a single conversation")
            texts.append(str(text))
    except Exception as error:  # a template is a program of its own, which may raise anything
        raise UserError(f"{key}=chat: the tokenizer's chat template refuses the turns: {first_line(error)}") from error
    return texts


def missing_opening(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """What the template writes before the model's turns, where it leaves that out of prompts; None where it does not,
    or cannot be asked.

    A template may ignore that the model's turn is to be opened and be right: where the user's turn ends with what the
    model answers after, as [/INST], there is nothing to open.
    """
    question: list[Message] = [{"role": "user", "content": "1+1="}]
    answered: list[Message] = [*question, {"role": "assistant", "content": _ANSWER}]
    try:
        opened, closed = (render(tokenizer, [question], key="", date=None, opened=each)[0] for each in (True, False))
        [whole] = render(tokenizer, [answered], key="", date=None, opened=False)
    except UserError:
        return None
    before, answer, _ = whole.partition(_ANSWER)
    if opened != closed or not answer or not before.startswith(opened.rstrip()):
        return None
    return before[len(opened.rstrip()) :].strip() or None


def writes_date(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer's chat template asks for the time."""
    return _CLOCK in str(tokenizer.chat_template)


class _TooLong(BaseException):
    """Not an `Exception`, which a template's own code could catch."""


@contextmanager
def _limited() -> Iterator[None]:
    """Ends what takes longer than `SECONDS` with a `TimeoutError`; only in the main thread, where signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _TooLong

    before: Any = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    except _TooLong:
        raise TimeoutError(f"it takes longer than {SECONDS:g} seconds for a single conversation") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
