"""The teachers, in this process: each is loaded when a step first needs it and leaves when a step does not."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from opd.batch import Rollout, TeacherScores
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
        shape = (len(self), *rollout.tokens.shape)
        logp, entropy = torch.full((2, *shape), torch.nan, dtype=rollout.rollout_logp.dtype)
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
            logp[index], entropy[index] = scores.logp, scores.entropy
        return TeacherScores(logp, entropy, hidden)

    def scorer(self, index: int) -> Scorer:
        """Teacher `index`, which the last `score` needed."""
        return self._scorers[index]
