"""The teachers: engines that score a rollout's tokens. `LocalTeachers` are transformers models in this process."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from opd.data.batch import Rollout, TeacherScores, TokenScores, TopTokens
from opd.errors import UserError
from opd.model.forward import spread
from opd.model.policy import Scorer
from opd.ranks.dist import Ranks

T = TypeVar("T")


@runtime_checkable
class Teachers(Protocol):
    """The teachers of a run, smallest first. `unchecked`: sentences about scores that could not be checked."""

    unchecked: Sequence[str] = ()

    def __len__(self) -> int: ...

    def score(self, rollout: Rollout, needed: Sequence[int]) -> TeacherScores:
        """Scores by the needed teachers, at their temperature. NaN: the rows of the others, and entropies that the
        engine cannot give.

        Raises:
            UserError: where a teacher does not answer, or its log-probabilities are not finite numbers.
        """
        ...

    def start_scoring(self, rollout: Rollout, needed: Sequence[int]) -> Callable[[], TeacherScores]:
        """Starts `score`; calling what is returned waits for the result. A teacher elsewhere starts at once, one on
        this machine only when waited for, because nothing else could run there meanwhile.
        """
        return lambda: self.score(rollout, needed)

    def close(self) -> None:
        """Frees their memory; the next `score` loads them again."""
        ...


class LoadedTeachers(Generic[T]):
    """The teachers loaded in this process: each is loaded when first needed, and passed to `release` when no longer
    needed.
    """

    def __init__(self, load: Sequence[Callable[[], T]], release: Callable[[T], None] = lambda _: None):
        self._load, self._release = load, release
        self._loaded: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._load)

    def __getitem__(self, index: int) -> T:
        """Teacher `index`, which the last `load_needed` loaded."""
        return self._loaded[index]

    def load_needed(self, needed: Sequence[int]) -> Iterator[tuple[int, T]]:
        """Releases all other teachers; yields the needed ones with their indices."""
        self._keep(set(needed))
        for index in needed:
            if index not in self._loaded:
                self._loaded[index] = self._load[index]()
            yield index, self._loaded[index]

    def close(self) -> None:
        """Releases all of them."""
        self._keep(set())

    def _keep(self, needed: set[int]) -> None:
        for index in self._loaded.keys() - needed:
            self._release(self._loaded.pop(index))


class LocalTeachers(Teachers):
    """Teachers loaded in this process as transformers models; `load[i]()` gives the scorer of teacher i.

    `keep_hidden`: their scores come with hidden states, from which full distributions can be recomputed.
    """

    def __init__(self, load: Sequence[Callable[[], Scorer]], *, keep_hidden: bool = False):
        self._loaded, self.keep_hidden = LoadedTeachers(load), keep_hidden

    def __len__(self) -> int:
        return len(self._loaded)

    def score(self, rollout: Rollout, needed: Sequence[int]) -> TeacherScores:
        """See `Teachers.score`."""
        scores: dict[int, TokenScores] = {}
        hidden: dict[int, Tensor] = {}
        for index, scorer in self._loaded.load_needed(needed):
            if self.keep_hidden:
                hidden[index] = scorer.empty_hidden(rollout)
            scores[index] = check_finite(scorer.scores(rollout, hidden.get(index)), index, scorer.ranks)
        return stack_scores(rollout, len(self), scores, hidden)

    def close(self) -> None:
        self._loaded.close()

    def scorer(self, index: int) -> Scorer:
        """Teacher `index`, which the last `score` needed."""
        return self._loaded[index]


def check_finite(scores: TokenScores, index: int, ranks: Ranks) -> TokenScores:
    """The scores of teacher `index`; every rank must call this.

    Raises:
        UserError: where a log-probability of any rank is not a finite number.
    """
    if ranks.any(not bool(torch.isfinite(scores.logp).all())):
        raise UserError(f"teacher.models.{index}: its log-probabilities are not finite numbers")
    return scores


def stack_scores(
    rollout: Rollout,
    num_teachers: int,
    scores: Mapping[int, TokenScores],
    hidden: dict[int, Tensor] | None = None,
    top: dict[int, TopTokens] | None = None,
) -> TeacherScores:
    """Stacks the teachers' scores, in the widest of their precisions; the rows of missing teachers are NaN."""
    unknown = torch.full(rollout.tokens.shape, torch.nan)
    rows = [scores.get(index, TokenScores(unknown, unknown)) for index in range(num_teachers)]
    dtype = functools.reduce(torch.promote_types, (row.logp.dtype for row in rows))
    logp, entropy = (torch.stack([getattr(row, name).to(dtype) for row in rows]) for name in ("logp", "entropy"))
    return TeacherScores(logp, entropy, hidden or {}, top or {})


# ---- engines that score sequences of tokens


def sequences(rollout: Rollout) -> list[list[int]]:
    """The token ids of each row: its prompt, then its response."""
    tokens, mask = torch.cat([rollout.prompt, rollout.tokens], 1), torch.cat([rollout.prompt_mask, rollout.mask], 1)
    return [row[present].tolist() for row, present in zip(tokens, mask, strict=True)]


def response_tokens(rollout: Rollout, rows: Sequence[TopTokens]) -> TopTokens:
    """The part of the sequences' tokens that is the responses'; `rows[row]` has all but the row's first token."""
    lengths = rollout.mask.sum(1).tolist()
    parts = [each.rows(slice(len(each.ids) - length, None)) for each, length in zip(rows, lengths, strict=True)]
    return TopTokens(torch.cat([part.ids for part in parts]), torch.cat([part.logp for part in parts]))


def scores_of_tokens(rollout: Rollout, num_teachers: int, top: dict[int, TopTokens], ranks: Ranks) -> TeacherScores:
    """The teachers' scores, from those of each response token; entropies are NaN. Raises as `check_finite` does."""
    entropy = torch.where(rollout.mask, torch.nan, 0.0)
    scores = {index: TokenScores(spread(each.logp[:, 0], rollout.mask), entropy) for index, each in top.items()}
    scores = {index: check_finite(each, index, ranks) for index, each in scores.items()}
    return stack_scores(rollout, num_teachers, scores, top=top)
