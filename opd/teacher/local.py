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
    """The teachers of a run, smallest first."""

    def __len__(self) -> int: ...

    def score(self, rollout: Rollout, needed: Sequence[int]) -> TeacherScores:
        """Scores by the needed teachers, at their temperature. NaN: the rows of the others, and entropies that the
        engine cannot give.

        Raises:
            UserError: where a teacher does not answer, or its log-probabilities are not finite numbers.
        """
        ...

    def ask(self, rollout: Rollout, needed: Sequence[int]) -> Callable[[], TeacherScores]:
        """Starts `score`; calling what is returned waits for the result. A teacher elsewhere starts at once, one on
        this machine only when waited for, because nothing else could run there meanwhile.
        """
        return lambda: self.score(rollout, needed)

    def close(self) -> None:
        """Frees their memory; the next `score` loads them again."""
        ...


class Held(Generic[T]):
    """The teachers loaded in this process: each is loaded when first needed, and released when no longer needed.

    `release` is called with each that is released.
    """

    def __init__(self, load: Sequence[Callable[[], T]], release: Callable[[T], None] = lambda _: None):
        self._load, self._release = load, release
        self._there: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._load)

    def __getitem__(self, index: int) -> T:
        """Teacher `index`, which the last `need` named."""
        return self._there[index]

    def need(self, needed: Sequence[int]) -> Iterator[tuple[int, T]]:
        """The needed teachers, each with its index; the others are released first."""
        self._keep(set(needed))
        for index in needed:
            if index not in self._there:
                self._there[index] = self._load[index]()
            yield index, self._there[index]

    def close(self) -> None:
        """Releases all of them."""
        self._keep(set())

    def _keep(self, needed: set[int]) -> None:
        for index in self._there.keys() - needed:
            self._release(self._there.pop(index))


class LocalTeachers(Teachers):
    """Teachers loaded in this process as transformers models; `load[i]()` gives the scorer of teacher i.

    `keep_hidden`: their scores come with hidden states, from which full distributions can be recomputed.
    """

    def __init__(self, load: Sequence[Callable[[], Scorer]], *, keep_hidden: bool = False):
        self._held, self.keep_hidden = Held(load), keep_hidden

    def __len__(self) -> int:
        return len(self._held)

    def score(self, rollout: Rollout, needed: Sequence[int]) -> TeacherScores:
        """See `Teachers.score`."""
        found: dict[int, TokenScores] = {}
        hidden: dict[int, Tensor] = {}
        for index, scorer in self._held.need(needed):
            if self.keep_hidden:
                hidden[index] = scorer.empty_hidden(rollout)
            found[index] = finite(scorer.scores(rollout, hidden.get(index)), index, scorer.ranks)
        return table(rollout, len(self), found, hidden)

    def close(self) -> None:
        self._held.close()

    def scorer(self, index: int) -> Scorer:
        """Teacher `index`, which the last `score` needed."""
        return self._held[index]


def finite(scores: TokenScores, index: int, ranks: Ranks) -> TokenScores:
    """The scores that teacher `index` gave; every rank must ask.

    Raises:
        UserError: where a log-probability of any rank is not a finite number.
    """
    if ranks.any(not bool(torch.isfinite(scores.logp).all())):
        raise UserError(f"teacher.models.{index}: its log-probabilities are not finite numbers")
    return scores


def table(
    rollout: Rollout,
    num_teachers: int,
    found: Mapping[int, TokenScores],
    hidden: dict[int, Tensor] | None = None,
    top: dict[int, TopTokens] | None = None,
) -> TeacherScores:
    """The scores of the teachers that were asked, in the widest of their precisions; the rows of the others are NaN."""
    unknown = torch.full(rollout.tokens.shape, torch.nan)
    rows = [found.get(index, TokenScores(unknown, unknown)) for index in range(num_teachers)]
    dtype = functools.reduce(torch.promote_types, (row.logp.dtype for row in rows))
    logp, entropy = (torch.stack([getattr(row, name).to(dtype) for row in rows]) for name in ("logp", "entropy"))
    return TeacherScores(logp, entropy, hidden or {}, top or {})


# ---- engines that take sequences and say the log-probability of each token after the ones before it


def sequences(rollout: Rollout) -> list[list[int]]:
    """The token ids of each row: its prompt, then its response."""
    prompts, responses = (rollout.prompt, rollout.prompt_mask), (rollout.tokens, rollout.mask)
    return [
        prompts[0][row][prompts[1][row]].tolist() + responses[0][row][responses[1][row]].tolist()
        for row in range(len(rollout))
    ]


def response_tokens(rollout: Rollout, rows: Sequence[TopTokens]) -> TopTokens:
    """The part of the sequences' tokens that is the responses'; `rows[row]` has all but the row's first token."""
    lengths = rollout.mask.sum(1).tolist()
    parts = [each.rows(slice(len(each.ids) - length, None)) for each, length in zip(rows, lengths, strict=True)]
    return TopTokens(torch.cat([part.ids for part in parts]), torch.cat([part.logp for part in parts]))


def sampled(rollout: Rollout, top: TopTokens) -> TokenScores:
    """The sampled tokens' log-probs in the rollout's layout; entropies are NaN."""
    return TokenScores(spread(top.logp[:, 0], rollout.mask), torch.where(rollout.mask, torch.nan, 0.0))
