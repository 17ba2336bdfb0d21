"""Logits → one token, by a uniform number that belongs to (key, prompt, sample, position) and to nothing else."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opd.data.batch import Prompt, Sampling

SORTED = 64  # vocabularies up to this size are sorted in full
HEAD = 16  # of larger ones, the most likely tokens are tried first


def uniforms(
    key: tuple[int, ...], prompts: Sequence[Prompt], num_samples: int, max_tokens: int, dtype: torch.dtype
) -> Float[Tensor, "batch time"]:
    """One number in [0, 1) a token, for `num_samples` neighbouring rows a prompt.

    A row's numbers are a Philox stream keyed by its response's hash: the same whatever else is sampled, in whatever
    order and batch.
    """
    numbers = np.empty((len(prompts) * num_samples, max_tokens), np.float32 if dtype == torch.float32 else np.float64)
    # One generator, rekeyed: making one takes ten times as long as drawing a response's numbers.
    stream = np.random.Philox(key=0)
    generator, state = np.random.Generator(stream), stream.state
    for row, digest in enumerate(response_hashes(key, prompts, num_samples, size=16)):
        state["state"]["key"] = np.frombuffer(digest, np.uint64)
        stream.state = state
        generator.random(out=numbers[row], dtype=numbers.dtype.type)
    return torch.from_numpy(numbers).to(dtype)


def response_hashes(key: tuple[int, ...], prompts: Sequence[Prompt], num_samples: int, *, size: int) -> Iterator[bytes]:
    """For each response a hash of (key, prompt id, how many earlier prompts of this call have the same id, sample)."""
    seen: dict[str, int] = {}
    for prompt in prompts:
        repeat = seen[prompt.id] = seen.get(prompt.id, -1) + 1
        for sample in range(num_samples):
            name = repr((tuple(map(int, key)), prompt.id, repeat, sample)).encode()
            yield hashlib.blake2b(name, digest_size=size).digest()


def truncate(logits: Float[Tensor, "rows vocab"], sampling: Sampling) -> Float[Tensor, "rows vocab"]:
    """Logits / temperature, -inf where top-k and then top-p leave the token out.

    top-k keeps the k largest; top-p the fewest largest of these whose probability, renormalised after top-k, reaches
    top_p. At least one token stays, and tokens that tie with the last one kept stay too.
    """
    logits = logits / sampling.temperature
    vocab = logits.shape[-1]
    if 0 < sampling.top_k < vocab:
        smallest = torch.topk(logits, sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p < 1:
        logits = logits.masked_fill(logits < _nucleus_edge(logits, sampling.top_p), -torch.inf)
    return logits


def _nucleus_edge(logits: Float[Tensor, "rows vocab"], top_p: float) -> Float[Tensor, "rows 1"]:
    """The smallest logit of the nucleus. A full sort costs more than a tiny model's whole step, so few rows get one."""
    vocab = logits.shape[-1]
    total = torch.logsumexp(logits, -1, keepdim=True)
    head = torch.topk(logits, vocab if vocab <= SORTED else HEAD).values
    edge, reached = _edge_within(head, total, top_p)
    if vocab > SORTED:
        rest = (~reached).nonzero()[:, 0]
        edge[rest] = _edge_within(logits[rest].sort(dim=-1, descending=True).values, total[rest], top_p)[0]
    return edge


def _edge_within(
    descending: Float[Tensor, "rows width"], total: Float[Tensor, "rows 1"], top_p: float
) -> tuple[Float[Tensor, "rows 1"], Bool[Tensor, " rows"]]:
    """→ (the last one needed of these largest logits, whether they are enough)."""
    mass = (descending - total).exp_().cumsum(-1)
    short = mass < top_p
    return descending.gather(-1, short[:, :-1].sum(-1, keepdim=True)), ~short[:, -1]


def sample_tokens(
    logits: Float[Tensor, "branches vocab"],
    branch: Int[Tensor, " rows"],
    uniform: Float[Tensor, " rows"],
    sampling: Sampling,
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Draws each row's next token from the logits of its branch, by inverting the cumulative distribution.

    Returns the tokens and their log-probabilities under the distribution drawn from: 0 for greedy decoding
    (temperature 0), whose distribution is a point mass; NaN where logits hold a NaN, +inf or no finite number.
    """
    logits = logits.to(uniform.dtype)
    if sampling.temperature == 0:
        return logits.argmax(-1)[branch], (logits.amax(-1) * 0).abs()[branch]
    probability = torch.softmax(truncate(logits, sampling), -1)
    cumulative = probability.cumsum(-1)[branch]
    # Below the total even after rounding, so that the sampled token always has a probability above 0.
    threshold = uniform[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    return token, probability[branch, token].log()
