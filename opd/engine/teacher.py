"""The teachers, in this process: each is loaded when a step first needs it and leaves when a step does not."""

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from opd.batch import Rollout, TeacherScores, TokenScores
from opd.engine.policy import Scorer
from opd.errors import UserError


class LocalTeachers:
    """Teachers held in this process; `load[i]()` gives the scorer of teacher i, smallest first.

    `keep_hidden`: their scores come with hidden states, from which whole distributions can be made again.
    """

    def __init__(self, load: Sequence[Callable[[], Scorer]], *, keep_hidden: bool = False):
        self._load, self.keep_hidden = load, keep_hidden
        self._scorers: dict[int, Scorer] = {}

    def __len__(self) -> int:
        return len(self._load)

    def score(self, rollout: Rollout, needed: Sequence[int]) -> TeacherScores:
        """Scores by the needed teachers, at their temperature; the rows of the others are NaN.

        Raises:
            UserError: where a teacher's log-probabilities are not finite numbers.
        """
        for index in self._scorers.keys() - set(needed):
            del self._scorers[index]
        found: dict[int, TokenScores] = {}
        hidden: dict[int, Tensor] = {}
        for index in needed:
            if index not in self._scorers:
                self._scorers[index] = self._load[index]()
            scorer = self._scorers[index]
            if self.keep_hidden:
                hidden[index] = scorer.empty_hidden(rollout)
            scores = scorer.scores(rollout, hidden.get(index))
            if scorer.ranks.any(not bool(torch.isfinite(scores.logp).all())):
                raise UserError(f"teacher.models.{index}: its log-probabilities are not finite numbers")
            found[index] = scores
        unknown = torch.full(rollout.tokens.shape, torch.nan)
        rows = [found.get(index, TokenScores(unknown, unknown)) for index in range(len(self))]
        return TeacherScores(_stacked(row.logp for row in rows), _stacked(row.entropy for row in rows), hidden)

    def scorer(self, index: int) -> Scorer:
        """Teacher `index`, which the last `score` needed."""
        return self._scorers[index]


def _stacked(rows: Iterable[Tensor]) -> Tensor:
    """The rows as one tensor, in the widest of their precisions."""
    rows = list(rows)
    dtype = functools.reduce(torch.promote_types, (row.dtype for row in rows))
    return torch.stack([row.to(dtype) for row in rows])
