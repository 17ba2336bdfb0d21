"""Logits → one token, by a uniform number that belongs to (key, prompt, sample, position) and to nothing else."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opd.data.batch import Prompt, Sampling

# float32 holds 2^24 numbers in [0, 1), too few to draw every token of a vocabulary above this size; a sum of that many
# probabilities rounds the small ones away. Such vocabularies are drawn from in blocks, by numbers of twice the bits.
LARGE = 2**15
BLOCK = 1024

SORTED = 64  # vocabularies up to this size are sorted in full
HEAD = 16  # of larger ones, the most likely tokens are tried first


def uniforms(
    key: tuple[int, ...],
    prompts: Sequence[Prompt],
    num_samples: int,
    max_tokens: int,
    dtype: torch.dtype,
    vocab_size: int = 0,
) -> Float[Tensor, "batch time"]:
    """One number in [0, 1) a token, for `num_samples` neighbouring rows a prompt.

    A row's numbers are a Philox stream keyed by its response's hash: the same whatever else is sampled, in whatever
    order and batch. For a `LARGE` vocabulary those of float32 are float64: a second stream gives the digits after them.
    """
    shape, kind = (len(prompts) * num_samples, max_tokens), np.float32 if dtype == torch.float32 else np.float64
    first = _streams(response_hashes(key, prompts, num_samples, size=16), np.empty(shape, kind))
    if dtype != torch.float32 or vocab_size <= LARGE:
        return torch.from_numpy(first).to(dtype)
    after = _streams(response_hashes(key, prompts, num_samples, size=16, person=b"after"), np.empty(shape))
    return torch.from_numpy(first + after * 2.0**-24)


def _streams(keys: Iterator[bytes], numbers: np.ndarray) -> np.ndarray:
    """Fills each row of `numbers` from the stream of its key."""
    # One generator, rekeyed: making one takes ten times as long as drawing a response's numbers.
    stream = np.random.Philox(key=0)
    generator, state = np.random.Generator(stream), stream.state
    for row, digest in enumerate(keys):
        state["state"]["key"] = np.frombuffer(digest, np.uint64)
        stream.state = state
        generator.random(out=numbers[row], dtype=numbers.dtype.type)
    return numbers


def response_hashes(
    key: tuple[int, ...], prompts: Sequence[Prompt], num_samples: int, *, size: int, person: bytes = b""
) -> Iterator[bytes]:
    """For each response a hash of (key, prompt id, how many earlier prompts of this call have the same id, sample);
    another one for another `person`.
    """
    seen: dict[str, int] = {}
    for prompt in prompts:
        repeat = seen[prompt.id] = seen.get(prompt.id, -1) + 1
        for sample in range(num_samples):
            name = repr((tuple(map(int, key)), prompt.id, repeat, sample)).encode()
            yield hashlib.blake2b(name, digest_size=size, person=person).digest()


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
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature == 0:
        return logits.argmax(-1)[branch], (logits.amax(-1) * 0).abs()[branch]
    probability = torch.softmax(truncate(logits, sampling), -1)
    if uniform.dtype != logits.dtype:
        token = _in_blocks(probability, branch, uniform)
        return token, probability[branch, token].log()
    cumulative = probability.cumsum(-1)[branch]
    # Below the total even after rounding, so that the sampled token always has a probability above 0.
    threshold = uniform[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    return token, probability[branch, token].log()


def _in_blocks(
    probability: Float[Tensor, "branches vocab"], branch: Int[Tensor, " rows"], uniform: Float[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """The draw of `sample_tokens` with sums in float64: first a block of tokens, then one of the block's."""
    blocks = F.pad(probability, (0, -probability.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    mass = blocks.sum(-1, dtype=torch.float64).cumsum(-1)[branch]
    total = mass[:, -1:]
    threshold = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    block = torch.searchsorted(mass, threshold, right=True).clamp_(max=mass.shape[-1] - 1)
    before = F.pad(mass, (1, 0)).gather(1, block)
    own = blocks[branch, block[:, 0]].double()
    # Summed in another order, the block may fall short of the threshold: then its last possible token is drawn.
    last = BLOCK - 1 - (own > 0).flip(-1).long().argmax(-1)
    inside = torch.searchsorted(own.cumsum(-1), threshold - before, right=True)[:, 0]
    token = block[:, 0] * BLOCK + torch.minimum(inside, last)
    return token.clamp_(max=probability.shape[-1] - 1)
