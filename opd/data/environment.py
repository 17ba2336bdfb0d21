"""Environments: the first messages of a conversation, and the reply to each turn of the model.

An environment never grades. Nothing here imports torch.
"""

from collections.abc import Sequence
from typing import Protocol, TypedDict, runtime_checkable


class Message(TypedDict):
    """A turn of a conversation, as chat templates take it: `role` is system, user, assistant or tool."""

    role: str
    content: str


@runtime_checkable
class HasProblem(Protocol):
    """A problem or a prompt."""

    @property
    def problem(self) -> str: ...


@runtime_checkable
class Environment(Protocol):
    """The other side of a conversation."""

    max_turns: int  # turns of the model in one response; the last gets no reply

    def start(self, prompts: Sequence[HasProblem]) -> list[list[Message]]:
        """Return the first messages of each problem."""
        ...

    def reply(self, messages: Sequence[Message], turn: int) -> list[Message] | None:
        """Return the reply to the model's `turn`-th turn (from 1), the last of `messages`; None ends the response.

        Only the reply's text is tokenised: sampled tokens stay as they are.
        """
        ...


class SingleTurn:
    """The problem, then one turn of the model."""

    max_turns = 1

    def start(self, prompts: Sequence[HasProblem]) -> list[list[Message]]:
        return [[{"role": "user", "content": prompt.problem}] for prompt in prompts]

    def reply(self, messages: Sequence[Message], turn: int) -> None:
        return None


def single_turn() -> SingleTurn:
    """No replies: a response is one turn."""
    return SingleTurn()
