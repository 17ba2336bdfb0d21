"""The data of a step. A `Rollout` row is one response; the `num_samples` responses to a prompt are adjacent.

Index t of a response is the t-th *sampled* token everywhere: the shift from logits to tokens is done once, in
`opd.model.policy`.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad as pad_to

from opd.data.problem import Turns
from opd.grading.grader import MATHEMATICS


@dataclass(frozen=True)
class Prompt:
    """One tokenised problem: `token_ids` is what the student sees, `problem` the text for people, `earlier` the turns
    before it.
    """

    id: str
    problem: str
    answer: str
    domain: str
    token_ids: tuple[int, ...]
    grader: str = MATHEMATICS  # the node of its grader, as JSON
    earlier: Turns = ()


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. top_p = 1 and top_k = 0 switch those truncations off; temperature 0 is greedy."""

    num_samples: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int


@dataclass(frozen=True)
class Rollout:
    """Responses sampled from the student.

    `prompt` is padded on the left, `tokens` on the right, both with the pad id; the masks exclude padding. `mask` is
    the response, with the token that ends it; `learned` its tokens that get a signal: neither what an environment
    wrote, nor a prefix given by `responses`. `rollout_logp` is the log-probability of each sampled token under the
    distribution that it was sampled from (after temperature, top-p and top-k, by the engine that sampled); 0 elsewhere.
    """

    prompt: Int[Tensor, "batch prompt_time"]
    prompt_mask: Bool[Tensor, "batch prompt_time"]
    tokens: Int[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]
    learned: Bool[Tensor, "batch time"]
    rollout_logp: Float[Tensor, "batch time"]
    group: Int[Tensor, " batch"]  # index of the row's prompt within the step
    truncated: Bool[Tensor, " batch"]  # stopped by `max_tokens`, not by a stop token

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def widened(self, width: int) -> "Rollout":
        """The same responses with room for `width` tokens."""
        more = (0, width - self.tokens.shape[1])
        wide = {name: pad_to(getattr(self, name), more) for name in ("tokens", "mask", "learned", "rollout_logp")}
        return replace(self, **wide)

    def rows(self, rows: slice) -> "Rollout":
        """Some of the responses; `group` still counts the whole step's prompts."""
        return Rollout(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class TokenScores:
    """One model's scores of the sampled tokens of a rollout; 0 where the response mask is False."""

    logp: Float[Tensor, "batch time"]
    entropy: Float[Tensor, "batch time"]  # nats, of the full next-token distribution


@dataclass(frozen=True)
class TopTokens:
    """A teacher's most likely tokens and the sampled one: one row per response token, response by response.

    The first of a row is the sampled token, which is repeated if it is among the most likely.
    """

    ids: Int[Tensor, "response_token k_and_one"]
    logp: Float[Tensor, "response_token k_and_one"]

    def rows(self, rows: "slice | Tensor") -> "TopTokens":
        """Those of some response tokens."""
        return TopTokens(self.ids[rows], self.logp[rows])


@dataclass(frozen=True)
class TeacherScores:
    """The teachers' scores, smallest teacher first. The row of a teacher that the step did not need is NaN."""

    logp: Float[Tensor, "teacher batch time"]
    entropy: Float[Tensor, "teacher batch time"]
    # Final hidden states of the needed teachers by index, where full distributions are needed: one row per response
    # token, response by response, in the teacher's precision, on the CPU.
    hidden: "dict[int, Float[Tensor, 'response_token width']]"
    # From engines that return the most likely tokens instead.
    top: dict[int, TopTokens] = field(default_factory=dict)

    @property
    def teachers_with_distributions(self) -> list[int]:
        """The teachers whose distributions are known, in full or in part."""
        return sorted(self.hidden or self.top)


def pad(rows: list[list[int]], value: int, side: str) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Ragged rows → (padded, mask); `side` is "left" or "right"."""
    width = max((len(row) for row in rows), default=0)
    padded = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        padded[index, where] = torch.tensor(row, dtype=torch.long)
        mask[index, where] = True
    return padded, mask
