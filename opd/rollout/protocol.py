"""What evaluation and training ask of the engine that samples."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from opd.data.batch import Prompt, Rollout, Sampling


@runtime_checkable
class Sampler(Protocol):
    """What evaluation asks: responses of the model as it is now."""

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, *, key: tuple[int, ...]) -> Rollout:
        """Samples `num_samples` responses a prompt, neighbouring rows of one rollout on the CPU.

        What is drawn for a prompt depends on the weights, `sampling`, `key` and the prompt, on nothing else.
        """
        ...


@runtime_checkable
class StudentSampler(Sampler, Protocol):
    """The engine itself, which follows the learner's weights."""

    def sync(self) -> None:
        """Takes over the learner's weights; call it after every optimizer step and every load."""
        ...

    def close(self) -> None:
        """Frees its memory; it cannot sample afterwards."""
        ...


@runtime_checkable
class Responses(Protocol):
    """What training asks: the responses that are learned from, whoever wrote them."""

    def draw(self, prompts: Sequence[Prompt], sampling: Sampling, *, key: tuple[int, ...]) -> Rollout:
        """`num_samples` responses a prompt, as `Sampler.sample` gives them; `Rollout.learned` marks the tokens that get
        a signal.
        """
        ...
