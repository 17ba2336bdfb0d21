"""The interfaces of engines that sample."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from opd.data.batch import Prompt, Rollout, Sampling


@runtime_checkable
class Sampler(Protocol):
    """Samples responses of the current model, for evaluation."""

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
    """The responses that are learned from, for training."""

    def draw(self, prompts: Sequence[Prompt], sampling: Sampling, *, key: tuple[int, ...]) -> Rollout:
        """`num_samples` responses a prompt, as `Sampler.sample` gives them; `Rollout.learned` marks the tokens that get
        a signal.
        """
        ...
