"""Who answers within a response: what a conversation begins with, and what is said after each turn of the model's.

An environment never grades. Nothing here imports torch.
"""

from collections.abc import Sequence
from typing import Protocol, TypedDict, runtime_checkable


class Message(TypedDict):
    """A turn of a conversation, as chat templates take it: `role` is system, user, assistant or tool."""

    role: str
    content: str


@runtime_checkable
class Posed(Protocol):
    """A problem or a prompt: what a conversation begins from."""

    @property
    def problem(self) -> str: ...


@runtime_checkable
class Environment(Protocol):
    """The other side of a conversation."""

    max_turns: int  # turns of the model in one response; after the last nobody answers

    def start(self, prompts: Sequence[Posed]) -> list[list[Message]]:
        """The messages that each problem begins with."""
        ...

    def reply(self, messages: Sequence[Message], turn: int) -> list[Message] | None:
        """What is said after the model's `turn`-th turn (from 1), the last of `messages`; None: the response is over.

        Only the reply's text is tokenised: sampled tokens stay as they are.
        """
        ...


class SingleTurn:
    """The problem, and one answer to it."""

    max_turns = 1

    def start(self, prompts: Sequence[Posed]) -> list[list[Message]]:
        return [[{"role": "user", "content": prompt.problem}] for prompt in prompts]

    def reply(self, messages: Sequence[Message], turn: int) -> None:
        return None


def single_turn() -> SingleTurn:
    """Nobody answers: a response is over when its first turn is."""
    return SingleTurn()
