"""A step's responses with everything that a learner needs, and how they are split into updates."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from jaxtyping import Bool, Float
from torch import Tensor

from opd.data.batch import Rollout, TeacherScores, TokenScores
from opd.objective.divergence import Chosen
from opd.objective.mixture import Mixture
from opd.ranks.dist import Ranks

PerToken = Float[Tensor, "batch time"]
PER_ROW = ("weight", "keep", "count", "anchor_logp", "reward", "advantage")  # fields of `Batch`


@dataclass(frozen=True)
class Batch:
    """All ranks' responses of a step and their scores; `own` are this rank's.

    `divergence` is each token's; `keep` gets a gradient, `count` stays in the denominator, which is `num_tokens` once
    the batch is split into the `parts` that are learned. `anchor_logp` and `reward` are None where nothing needs them.
    `weights` are those of the terms of `signal` at this step, once the batch is prepared.
    """

    own: Rollout
    rollout: Rollout
    student: TokenScores
    teachers: TeacherScores
    mixture: Mixture
    divergence: Chosen
    weight: PerToken
    keep: Bool[Tensor, "batch time"]
    count: Bool[Tensor, "batch time"]
    anchor_logp: PerToken | None
    reward: Float[Tensor, " batch"] | None
    extrapolation: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)
    advantage: PerToken | None = None
    num_tokens: Float[Tensor, "batch 1"] | None = None

    def parts(self, num_parts: int, ranks: Ranks, divisor: Callable[..., Tensor]) -> "Iterator[Batch]":
        """This rank's share of each part of the batch, its denominators those of the part over all ranks."""
        size, before = len(self.rollout) // num_parts, 0
        share = size // ranks.size
        for part in range(num_parts):
            count = self.count[part * size : (part + 1) * size]
            num_tokens = divisor(count, int(count.sum()), int(count.any(1).sum()))
            own_rows = slice(part * share, (part + 1) * share)
            after = before + int(self.own.mask[own_rows].sum())
            within = slice(ranks.rank * share, (ranks.rank + 1) * share)
            rows = slice(part * size + within.start, part * size + within.stop)
            yield replace(
                self._rows(rows, self.own.rows(own_rows), slice(before, after)), num_tokens=num_tokens[within]
            )
            before = after

    def signal(self, log_ratio: PerToken) -> PerToken:
        """Each token's advantage: as prepared, or, where the divergence itself is differentiated, its own."""
        return self.divergence.advantage(log_ratio) if self.advantage is None else self.advantage

    def _rows(self, rows: slice, own: Rollout, tokens: slice) -> "Batch":
        hidden = {index: states[tokens] for index, states in self.teachers.hidden.items()}
        top = {index: likeliest.rows(tokens) for index, likeliest in self.teachers.top.items()}
        return replace(
            self,
            own=own,
            rollout=own,
            student=TokenScores(self.student.logp[rows], self.student.entropy[rows]),
            teachers=TeacherScores(self.teachers.logp[:, rows], self.teachers.entropy[:, rows], hidden, top),
            mixture=self.mixture.rows(rows),
            divergence=self.divergence.rows(rows),
            **{name: None if (values := getattr(self, name)) is None else values[rows] for name in PER_ROW},
        )
