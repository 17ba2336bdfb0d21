"""Whether a server's scores are the log-probs of its model: what no model can give is refused in every answer, and
before training a short text is scored several times, and by a copy of the weights where one is at hand.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from opd.data.batch import TopTokens
from opd.errors import UserError
from opd.model.load import load_model

Score = Callable[[Sequence[list[int]]], Awaitable[list[TopTokens]]]

# A log-prob may be above 0, and a sum of probabilities above 1, by rounding in bfloat16.
MOST_LOGP, MOST_SUM = 1e-3, 1.01
# Scores of one text in other batches, of bfloat16 kernels: nats. Those of a copy in float32: nats, and a share of them.
SAME, NEAR, SHARE = 0.2, 0.05, 0.05
# A copy of the weights that is not loaded for this: bytes.
LARGEST_COPY = 2**31

_TEXT = "Question: what is 17 + 26? Answer: 17 + 26 = 43."
_LENGTHS = range(6, 25)


def refuse_impossible(scores: Sequence[TopTokens], *, name: str) -> None:
    """Refuses numbers that are no log-probs of one distribution a position.

    Raises:
        UserError: naming the servers.
    """
    for each in scores:
        if not len(each.logp):
            continue
        if (highest := float(each.logp.max())) > MOST_LOGP:
            raise UserError(
                f"{name}: a log-probability is {highest:.3g}, and none can be above 0; the server must return natural "
                "logarithms of probabilities"
            )
        # The first is the text's own token; of the likeliest that follow it alone may be listed again.
        again = each.ids[:, 1:] == each.ids[:, :1]
        total = each.logp[:, 0].exp() + each.logp[:, 1:].exp().masked_fill(again, 0.0).sum(1)
        if (largest := float(total.max())) > MOST_SUM:
            raise UserError(
                f"{name}: the probabilities of one position add up to {largest:.3g}; the server must return natural "
                "logarithms of probabilities at temperature 1"
            )


@dataclass(frozen=True)
class Probe:
    """A short text, and variants of it whose scores say something about its."""

    text: list[int]
    other: int  # another last token

    @property
    def rows(self) -> list[list[int]]:
        return [self.text, self.text, self.text[:-2], [*self.text[:-1], self.other]]


def probe(tokenizer: PreTrainedTokenizerBase, longest: int) -> Probe | None:
    """A text of at most `longest` tokens; None where the vocabulary or the length has no room for one."""
    special = {*tokenizer.all_special_ids}
    ids = [index for index in tokenizer.encode(_TEXT, add_special_tokens=False) if index not in special]
    if len(ids) < _LENGTHS[0]:
        ids = [index for index in sorted(tokenizer.get_vocab().values()) if index not in special]
    ids = ids[: min(_LENGTHS[-1], longest)]
    others = [index for index in ids if index != ids[-1]]
    return Probe(ids, others[0]) if len(ids) >= _LENGTHS[0] and others else None


async def check_scores(score: Score, probe: Probe, *, name: str, copy: str | None) -> list[str]:
    """Scores the probe; returns what could not be checked.

    `copy`: a directory with the weights that the servers should have.

    Raises:
        UserError: where the scores cannot be those of a model, or are not the copy's.
    """
    answers = [(await score([row]))[0] for row in probe.rows]
    refuse_impossible(answers, name=name)
    text, again, prefix, other = (answer.logp[:, 0] for answer in answers)
    if float(text.abs().max()) < MOST_LOGP:
        raise UserError(f"{name}: scores every token of a text as certain (log-probability 0)")
    if not _close(text, again, SAME):
        raise UserError(f"{name}: scores the same text twice as {_named(text)} and {_named(again)}")
    if not (_close(text[: len(prefix)], prefix, SAME) and _close(text[:-1], other[:-1], SAME)):
        raise UserError(f"{name}: its score of a token depends on later ones; it must be that after the earlier ones")
    if float(text[-1]) == float(other[-1]):
        raise UserError(f"{name}: scores different last tokens alike, so it does not score the tokens that it is sent")
    if copy is None:
        return [f"{name}: its weights are not at hand, so its scores were not compared with theirs"]
    size = sum(file.stat().st_size for file in Path(copy).glob("*.safetensors"))
    if size > LARGEST_COPY:
        return [
            f"{name}: {copy} is larger than {LARGEST_COPY / 2**30:.0f} GiB, so its scores were not compared with it"
        ]
    expected = _by_copy(copy, probe.text, name)
    off, allowed = float((text - expected).abs().mean()), NEAR + SHARE * float(expected.abs().mean())
    if off > allowed:
        raise UserError(
            f"{name}: scores a text as {_named(text)}, and {copy} as {_named(expected)}; the server must return "
            "natural logarithms at temperature 1 of the same weights"
        )
    return []


def _by_copy(copy: str, text: list[int], name: str) -> Tensor:
    model = load_model(copy, revision=None, dtype="float32", key=name)
    with torch.inference_mode():
        logp = model(torch.tensor([text])).logits[0, :-1].float().log_softmax(-1)
    return logp.gather(1, torch.tensor(text[1:])[:, None])[:, 0]


def _close(one: Tensor, another: Tensor, bound: float) -> bool:
    return bool((one - another).abs().max() <= bound)


def _named(scores: Tensor) -> str:
    return " ".join(f"{number:.2f}" for number in scores[:4].tolist()) + " …"
