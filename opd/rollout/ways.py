"""Which way of sampling a model is right for: the first that gives the log-probs of the model's own forward."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from opd.data.batch import Prompt, Sampling
from opd.errors import UserError, first_line
from opd.model.load import max_positions
from opd.rollout.continuous import ContinuousBatch
from opd.rollout.draws import Request
from opd.rollout.fused_forward import can_fuse
from opd.rollout.generation import Generation
from opd.rollout.kv_cache import BufferPool

# What a trial may be off by: rounding, and this part of what the prompt's earlier tokens change. Of that, families that
# are right in float32 are off by less than 2e-5, those that are not by more than 1e-4 after a few tokens.
ROUNDING, PART = 32, 5e-5
# Prompts of mixed lengths, two of which `Generation` reads together, with branches, to which a state in a family's
# modules would not be copied; hot, for the tokens of a sure model would tell nothing, whose log-probs are 0 whatever a
# way forgets.
PROMPTS, SAMPLING = (9, 8, 4), Sampling(num_samples=2, max_tokens=8, temperature=5.0, top_p=1.0, top_k=0)


@dataclass(frozen=True)
class Way:
    """`batch` makes a `ContinuousBatch`, or what has its interface; `slow` says in what way it is slow, if it is."""

    batch: partial[Any]
    slow: str = ""


def choose(model: PreTrainedModel, name: str) -> Way:
    """The fastest way that samples `model` rightly, by a trial of each on a few tokens. Call it as one samples.

    Raises:
        UserError: where none does.
    """
    reason = ""
    for way in _ways(model):
        try:
            if _agrees(model, way):
                return way
            reason = reason or "its log-probs with a cache and without one differ"
        except Exception as error:  # families fail in many ways where they meet a cache that is not theirs
            reason = first_line(error)
    raise UserError(f"{name} cannot be sampled with rollout=transformers: {reason}; try rollout=vllm")


def _ways(model: PreTrainedModel) -> Iterator[Way]:
    if _plain_attention(model):
        fused = can_fuse(model)  # the buffers of larger models are better freed
        yield Way(partial(ContinuousBatch, fused=fused, pool=BufferPool() if fused else None))
    yield Way(partial(Generation, cached=True), "the slower way")
    yield Way(partial(Generation, cached=False), "without a cache, by far the slowest way")


def _plain_attention(model: PreTrainedModel) -> bool:
    """Whether transformers, too, would cache keys and values alone, each visible by its distance."""
    try:
        kinds, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    except AttributeError:  # of families older than these
        return False
    return {*kinds} <= {"full_attention", "sliding_attention"}


def _agrees(model: PreTrainedModel, way: Way) -> bool:
    """Whether a few tokens have the log-probs that the model's own forward gives them; true of NaN, which is another
    matter.
    """
    vocabulary, positions = model.config.get_text_config().vocab_size, max_positions(model.config)
    room = (positions or 64) - SAMPLING.max_tokens
    prompts = [
        Prompt(str(length), "", "", "", tuple((7 * index + length) % vocabulary for index in range(min(length, room))))
        for length in PROMPTS
    ]
    request = Request(model, prompts, SAMPLING, key=(0,), stop_ids=(), pad_id=0, max_batch_tokens=64)
    draws = way.batch(request).run()
    off, effect = [], []
    for row, (response, found) in enumerate(zip(draws.tokens.clamp(min=0), draws.logp, strict=True)):
        prompt = prompts[row // SAMPLING.num_samples]
        text = torch.cat((torch.tensor(prompt.token_ids, device=response.device), response))
        expected = _scores(model, text, response)
        off.append(found - expected)
        effect.append(_scores(model, text[len(prompt.token_ids) - 1 :], response) - expected)
    most, usual = (float(torch.cat(each).abs().max()) for each in (off, effect))
    return not most > ROUNDING * torch.finfo(model.dtype).eps + PART * usual


def _scores(model: PreTrainedModel, text: Tensor, response: Tensor) -> Float[Tensor, " response"]:
    """Log-probs of `response`, the end of `text`, by one forward."""
    logits = model(input_ids=text[None], use_cache=False).logits[0, -len(response) - 1 : -1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / SAMPLING.temperature
    return logits.log_softmax(-1).gather(-1, response[:, None])[:, 0]
