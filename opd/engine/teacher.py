"""The teachers, in this process: each is loaded when a step first needs it and leaves when a step does not."""

from collections.abc import Callable, Sequence

import torch

from opd.batch import Rollout, TeacherScores
from opd.engine.policy import Scorer
from opd.errors import UserError


class LocalTeachers:
    """Teachers held in this process; `load[i]()` gives the scorer of teacher i, smallest first."""

    def __init__(self, load: Sequence[Callable[[], Scorer]]):
        self._load = load
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
        logp, entropy = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
        for index in needed:
            if index not in self._scorers:
                self._scorers[index] = self._load[index]()
            scores = self._scorers[index].scores(rollout)
            if not torch.isfinite(scores.logp).all():
                raise UserError(f"teacher.models.{index}: its log-probabilities are not finite numbers")
            logp[index], entropy[index] = scores.logp, scores.entropy
        return TeacherScores(logp, entropy)
