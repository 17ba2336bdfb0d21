"""How far a sampling engine is from the learner: both score the same samples."""

from typing import Any

import torch
from transformers import PreTrainedModel

from opd.batch import Rollout, Sampling
from opd.engine.choice import truncate
from opd.engine.forward import micro_batches, response_hidden

ROWS = 16  # responses that are compared; few, so that the check costs little beside the rollout
TOKENS = 8192  # of a micro-batch
CHUNK = 256  # tokens whose logits exist at once
APART = 10.0  # the most that a token counts: one that only the sampler could draw is infinitely far


@torch.no_grad()
def mean_drift(learner: PreTrainedModel, rollout: Rollout, sampling: Sampling) -> float:
    """Mean over tokens of |rollout_logp - the learner's log-prob|, both after temperature, top-k and top-p.

    Of some responses, evenly spread. A token counts `APART` at most; NaN where the learner's log-probs are.
    """
    part = _some(rollout)
    found = []
    for micro in micro_batches(part, max_tokens=TOKENS):
        hidden = response_hidden(learner, micro, learner.device)
        head: Any = learner.get_output_embeddings().weight  # pyright: ignore
        theirs = part.rollout_logp[micro.rows][micro.response].to(hidden.device)
        tokens = micro.tokens.to(hidden.device)
        for chunk in torch.arange(len(tokens)).split(CHUNK):
            logits = truncate((hidden[chunk] @ head.T).float(), sampling)
            ours = logits.log_softmax(-1).gather(-1, tokens[chunk, None])[:, 0]
            found.append((theirs[chunk] - ours).abs().clamp(max=APART).cpu())
    return float(torch.cat(found).double().mean())


def _some(rollout: Rollout) -> Rollout:
    if len(rollout) <= ROWS:
        return rollout
    rows = torch.linspace(0, len(rollout) - 1, ROWS).long()
    return Rollout(**{name: value[rows] for name, value in vars(rollout).items()})
