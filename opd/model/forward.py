"""Hidden states of a rollout, one micro-batch at a time: the only place where logits are shifted to tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from opd.data.batch import Rollout
from opd.model import packed
from opd.model.head import head_inputs


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a rollout, prompt and response joined and padded on the right, so that no attention mask is needed.

    `inputs` lacks each row's last token, which predicts nothing; `there` marks the inputs that are not padding.
    `predicts` marks the inputs whose next token is a response token; `response` marks the same tokens in the rollout's
    [row, time] layout, in the same order.
    """

    rows: Int[Tensor, " taken"]  # as many as `inputs` has; none in an empty micro-batch
    inputs: Int[Tensor, "rows length"]
    there: Bool[Tensor, "rows length"]
    predicts: Bool[Tensor, "rows length"]
    response: Bool[Tensor, "taken time"]
    tokens: Int[Tensor, " response_tokens"]


def micro_batches(
    rollout: Rollout, *, max_tokens: int, agreed: Callable[[int], int] = lambda own: own
) -> Iterator[MicroBatch]:
    """Groups rows of similar length, at most `max_tokens` padded tokens per micro-batch (a longer row is its own).

    `agreed` turns this rank's number of micro-batches into the number of all ranks, because all take part in each
    other's; empty ones make up the difference.
    """
    prompt_length, length = rollout.prompt_mask.sum(1), rollout.mask.sum(1)
    total = prompt_length + length - 1
    order = torch.argsort(total, descending=True, stable=True)
    totals = total[order].tolist()
    starts = []
    while (start := starts[-1] + max(1, max_tokens // max(1, totals[starts[-1]])) if starts else 0) < len(totals):
        starts.append(start)
    missing = agreed(len(starts)) - len(starts)  # before the first micro-batch, which has collectives of its own
    for start, end in zip(starts, [*starts, len(totals)][1:], strict=True):
        yield _join(rollout, order[start:end], prompt_length, length)
    for _ in range(missing):
        yield _empty(rollout)


def _empty(rollout: Rollout) -> MicroBatch:
    """A micro-batch of one input that predicts nothing."""
    inputs, none = torch.zeros(1, 1, dtype=torch.long), rollout.mask[:0]
    return MicroBatch(torch.zeros(0, dtype=torch.long), inputs, inputs == 0, inputs > 0, none, rollout.tokens[:0][none])


def _join(rollout: Rollout, rows: Tensor, prompt_length: Tensor, length: Tensor) -> MicroBatch:
    prompt_length, length = prompt_length[rows, None], length[rows, None]
    position = torch.arange(int((prompt_length + length).max()) - 1)[None]
    # The prompt is padded on the left, the response on the right; joined, a row is dense from position 0.
    prompt = rollout.prompt[rows].gather(
        1, (position + rollout.prompt.shape[1] - prompt_length).clamp(0, rollout.prompt.shape[1] - 1)
    )
    response = rollout.tokens[rows].gather(1, (position - prompt_length).clamp(0, rollout.tokens.shape[1] - 1))
    inputs = torch.where(position < prompt_length, prompt, response)
    there = position < prompt_length + length - 1
    predicts = (position >= prompt_length - 1) & there
    mask = rollout.mask[rows]
    return MicroBatch(rows, inputs.masked_fill(~there, 0), there, predicts, mask, rollout.tokens[rows][mask])


def response_hidden(
    model: PreTrainedModel, micro: MicroBatch, device: torch.device
) -> Float[Tensor, "response_tokens width"]:
    """What the output head reads where it predicts the response's tokens, in the order of `micro.tokens`."""
    if packed.enabled(model) and not micro.there.all():
        states, predicts = packed.hidden(model, micro.inputs, micro.there, device), micro.predicts[micro.there]
    else:
        states = head_inputs(model, micro.inputs.to(device)).flatten(0, 1)
        predicts = micro.predicts.flatten()
    return states.index_select(0, predicts.nonzero()[:, 0].to(device))


def token_index(mask: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """The index of each response token among all of them, response by response; undefined where `mask` is False."""
    return mask.flatten().cumsum(0).reshape(mask.shape) - 1


def spread(flat: Float[Tensor, " response_token"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Puts one number per response token into the rollout's layout, with 0 where `mask` is False."""
    return torch.zeros(mask.shape, dtype=flat.dtype).masked_scatter(mask, flat)
