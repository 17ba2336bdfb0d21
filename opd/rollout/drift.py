"""How far a sampling engine is from the learner: both score the same samples."""

import math

import torch
from torch import Tensor

from opd.data.batch import Rollout, Sampling
from opd.model.forward import MicroBatch, micro_batches
from opd.model.sharded import Root
from opd.objective.head import Head
from opd.rollout.token_sampling import truncate

ROWS = 16  # responses that are compared; few, so that the check costs little beside the rollout
TOKENS = 8192  # of a micro-batch
CHUNK = 256  # tokens whose logits exist at once
MAX_TOKEN_DRIFT = 10.0  # a token that only the sampler could draw would be infinitely far


@torch.no_grad()
def mean_drift(learner: Root, rollout: Rollout, sampling: Sampling) -> float:
    """Mean over tokens of |rollout_logp - the learner's log-prob|, both after temperature, top-k and top-p.

    Of some responses of each rank, evenly spread. A token counts `MAX_TOKEN_DRIFT` at most; NaN where a log-prob of
    the learner is, or where no rank has a token. All ranks must call this, also those without a response.
    """
    part = _subset(rollout)
    total = {"drift": 0.0, "tokens": 0.0}
    for micro in micro_batches(part, max_tokens=TOKENS, agreed=learner.ranks.max):

        def total_drift(hidden: Tensor, head: Head, micro: MicroBatch = micro) -> float:
            theirs = part.rollout_logp[micro.rows][micro.response].to(hidden.device)
            tokens, drift = micro.tokens.to(hidden.device), torch.zeros((), dtype=torch.float64, device=hidden.device)
            for chunk in torch.arange(len(tokens)).split(CHUNK):
                logits = torch.empty(len(chunk), len(head), dtype=torch.float32, device=hidden.device)
                logits = truncate(head.logits_(logits, hidden[chunk], 1.0), sampling)
                ours = logits.log_softmax(-1).gather(-1, tokens[chunk, None])[:, 0]
                drift += (theirs[chunk] - ours).abs().clamp(max=MAX_TOKEN_DRIFT).double().sum()
            return float(drift)

        total["drift"] += learner(micro, total_drift)
        total["tokens"] += len(micro.tokens)
    total = learner.ranks.sum(total)
    return total["drift"] / total["tokens"] if total["tokens"] else math.nan


def _subset(rollout: Rollout) -> Rollout:
    if len(rollout) <= ROWS:
        return rollout
    rows = torch.linspace(0, len(rollout) - 1, ROWS).long()
    return Rollout(**{name: value[rows] for name, value in vars(rollout).items()})
