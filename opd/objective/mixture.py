"""What an ensemble of teachers is: weights over the teachers, and the space that they are mixed in.

    probability     log Σ w_k π_k, a true mixture, exact on the sampled token alone
    log             Σ w_k log π_k, the geometric mean without its normaliser
    log_normalized  the same, normalised over the vocabulary, so it exists on full distributions only
    advantage       the advantages are averaged, Σ w_k A(student / π_k); for reverse KL the same as "log"

Everything follows: the reference on sampled tokens and on the vocabulary, which teachers a step needs (those with a
weight), and the reference's entropy. What a teacher without weight says, NaN included, never leaks.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opd.errors import UserError

Space = Literal["probability", "log", "log_normalized", "advantage"]
Number = float | int


@dataclass(frozen=True)
class Rows:
    """The input of an ensemble that treats responses differently; `teacher` is None for the others."""

    teacher: Int[Tensor, " batch"] | None  # the teacher of each response, from `Ensemble.assign`
    group: Int[Tensor, " batch"]
    mask: Bool[Tensor, "batch time"]
    logp: Float[Tensor, "teacher batch time"]
    entropy: Float[Tensor, "teacher batch time"]


@dataclass(frozen=True)
class Mixture:
    """Weights that sum to 1 over the teachers, the same for all responses or each response's own, and their space."""

    weights: Float[Tensor, " teacher"] | Float[Tensor, "teacher batch"]
    space: Space

    def rows(self, rows: slice) -> "Mixture":
        """That of some responses of the batch."""
        return self if self.weights.ndim == 1 else Mixture(self.weights[:, rows], self.space)

    def reference(self, teacher_logp: Float[Tensor, "teacher *batch"]) -> Float[Tensor, "*batch"]:
        """log-probs of the reference. Spaces "log" and "advantage" give the unnormalised geometric mean.

        For "log_normalized" the last axis must be the whole vocabulary.
        """
        weights = self._over(teacher_logp)
        if self.space == "probability":
            return torch.where(weights > 0, teacher_logp + weights.log(), -torch.inf).logsumexp(0)
        mean = torch.where(weights > 0, weights * teacher_logp, 0).sum(0)
        return mean.log_softmax(-1) if self.space == "log_normalized" else mean

    def advantage(
        self,
        advantage: Callable[[Tensor], Tensor],
        student_logp: Float[Tensor, "*batch"],
        teacher_logp: Float[Tensor, "teacher *batch"],
    ) -> Float[Tensor, "*batch"]:
        """`advantage` of the log-ratio to the reference or, in space "advantage", its mean over the teachers."""
        if self.space != "advantage":
            return advantage(student_logp - self.reference(teacher_logp))
        weights = self._over(teacher_logp)
        return sum(
            (
                torch.where(w > 0, w * advantage(student_logp - logp), 0)
                for w, logp in zip(weights, teacher_logp, strict=True)
            ),
            start=torch.zeros_like(student_logp),
        )

    def entropy(self, teacher_entropy: Float[Tensor, "teacher *batch"]) -> Float[Tensor, "*batch"]:
        """Mean of the teachers' entropies: the reference's own where one teacher has all the weight.

        That of a mixture of several is at least this, and takes their full distributions (`vocabulary.statistics`).
        """
        weights = self._over(teacher_entropy)
        return torch.where(weights > 0, weights * teacher_entropy, 0).sum(0)

    def _over(self, values: Tensor) -> Tensor:
        weights = self.weights.to(values)
        return weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))


@dataclass(frozen=True)
class Prefixes:
    """Texts put before a prompt, one a teacher, that tell the student which teacher it will learn from."""

    texts: tuple[str, ...]
    teacher_sees: bool
    at_evaluation: str


class Ensemble:
    """An ensemble as the config names it: called, it gives the reference on sampled tokens.

    `weigh(num_teachers, progress, rows, **knobs)` is the definition. `assigns(num_teachers, domains, seed, **knobs)`
    gives each prompt of a step its teacher, for the ensembles that route prompts; `prefixes(num_teachers, **knobs)` the
    texts before them, for those that tell the student.
    """

    def __init__(
        self,
        weigh: Callable[..., Mixture],
        *,
        at_least: int,
        at_most: int | None = None,
        assigns: Callable[..., Sequence[int]] | None = None,
        prefixes: Callable[..., Prefixes] | None = None,
        needs_rows: bool = False,
    ):
        self.__name__, self.__doc__, self.__module__ = weigh.__name__, weigh.__doc__, weigh.__module__
        self.weigh, self.at_least, self.at_most, self.assigns = weigh, at_least, at_most, assigns
        self.prefixes, self.needs_rows = prefixes, needs_rows
        knobs = [p for p in inspect.signature(weigh).parameters.values() if p.kind is p.KEYWORD_ONLY]
        own = list(inspect.signature(Ensemble.__call__).parameters.values())[1:4]
        self.__signature__ = inspect.Signature([*own, *knobs])

    def __call__(
        self,
        teacher_logp: Float[Tensor, "teacher *batch"],
        progress: Number,
        rows: Rows | None = None,
        **knobs: Any,
    ) -> Float[Tensor, "*batch"]:
        """The reference on sampled tokens; on full distributions use `mixture(...).reference`.

        Raises:
            UserError: for a mixture that is normalised over the vocabulary, which sampled tokens do not show.
        """
        mixture = self.mixture(len(teacher_logp), progress, rows, **knobs)
        if mixture.space == "log_normalized":
            raise UserError(
                f"ensemble.normalize=true: {self.__name__} is normalised over the whole vocabulary, which sampled "
                "tokens do not show; set ensemble.normalize=false, or a support over the vocabulary"
            )
        return mixture.reference(teacher_logp)

    def mixture(self, num_teachers: int, progress: Number, rows: Rows | None = None, **knobs: Any) -> Mixture:
        """The weights of a step, and the space they act in.

        Raises:
            ValueError: where the ensemble treats responses differently and `rows` is missing.
        """
        if self.needs_rows and rows is None:
            raise ValueError(f"ensemble {self.__name__} treats responses differently: it needs rows")
        return self.weigh(num_teachers, progress, rows, **knobs)

    def needed(self, num_teachers: int, progress: Number, **knobs: Any) -> tuple[int, ...]:
        """Indices of the teachers that a step at `progress` needs, in order: only these are loaded and run."""
        if self.needs_rows:
            return tuple(range(num_teachers))
        weights = self.weigh(num_teachers, progress, None, **knobs).weights
        return tuple(index for index, weight in enumerate(weights.tolist()) if weight > 0)

    def assign(
        self, num_teachers: int, domains: Sequence[str], seed: Sequence[int], **knobs: Any
    ) -> tuple[int, ...] | None:
        """The teacher of each prompt of a step, given the prompts' domains; None where prompts are not routed.

        `seed` is what the choice may depend on, (seed, step): the same again in a resumed run.
        """
        return None if self.assigns is None else tuple(self.assigns(num_teachers, domains, seed, **knobs))


@dataclass(frozen=True)
class BoundEnsemble:
    """An ensemble with its number of teachers and its knobs filled in."""

    ensemble: Ensemble
    num_teachers: int
    knobs: dict[str, Any]

    def needed(self, progress: Number) -> tuple[int, ...]:
        """Indices of the teachers that a step at `progress` needs."""
        return self.ensemble.needed(self.num_teachers, progress, **self.knobs)

    def assign(self, domains: Sequence[str], seed: Sequence[int]) -> tuple[int, ...] | None:
        """The teacher of each prompt; None where prompts are not routed."""
        return self.ensemble.assign(self.num_teachers, domains, seed, **self.knobs)

    def prefixes(self) -> Prefixes:
        """What is put before the prompts: mostly nothing."""
        if self.ensemble.prefixes is None:
            return Prefixes(("",) * self.num_teachers, teacher_sees=True, at_evaluation="")
        return self.ensemble.prefixes(self.num_teachers, **self.knobs)

    def mixture(self, progress: Number, rows: Rows) -> Mixture:
        """The weights of the step, and the space they act in."""
        return self.ensemble.mixture(self.num_teachers, progress, rows, **self.knobs)


def ensemble(**traits: Any) -> Callable[[Callable[..., Mixture]], Ensemble]:
    """Makes an `Ensemble` of the function that weighs its teachers."""
    return lambda weigh: Ensemble(weigh, **traits)
