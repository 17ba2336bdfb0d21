"""Log-probs of sampled tokens from hidden states and an output head, without ever holding [tokens, vocabulary].

Logits (`opd.objective.head`) come in chunks of tokens; low-precision inputs accumulate in float32.

The loss is a function of [batch, time] log-probs and entropies, so its gradient for them is known before the second
pass begins, and that pass turns it into the gradients of hidden states and head:

    d logits = grad_logp · (onehot - p) - grad_entropy · p · (log p + H)        all divided by the temperature
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.objective.head import Head, HeadGradient, accumulate

BLOCK = 1 << 18  # numbers worked on at once on a CPU: few enough for its cache, enough to keep its cores busy


@torch.no_grad()
def token_scores(
    hidden: Float[Tensor, "token width"],
    head: Head | Float[Tensor, "vocabulary width"],
    tokens: Int[Tensor, " token"],
    *,
    temperature: float,
    chunk_size: int,
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """The sampled token's log-prob and the entropy (nats) of each full distribution. No gradient.

    Returns float32 (float64 for float64 inputs), whatever the inputs' precision. `chunk_size` tokens at a time: extra
    memory is chunk_size · vocabulary numbers.
    """
    head = Head.of(head)
    dtype = accumulate(hidden.dtype)
    logp, entropy = (torch.zeros(len(hidden), dtype=dtype, device=hidden.device) for _ in range(2))
    for chunk, logits in logits_chunks(hidden, head, temperature, chunk_size):
        for block in blocks(logits):
            log_p = log_softmax_(logits[block])
            rows = slice(chunk.start + block.start, chunk.start + block.stop)
            logp[rows] = log_p.gather(-1, tokens[rows, None])[:, 0]
            entropy[rows] = -torch.linalg.vecdot(log_p.exp(), log_p)
    return logp, entropy


@torch.no_grad()
def backward_token_scores(
    hidden: Float[Tensor, "token width"],
    head: Head | Float[Tensor, "vocabulary width"],
    tokens: Int[Tensor, " token"],
    grad_logp: Float[Tensor, " token"],
    grad_entropy: Float[Tensor, " token"] | None,
    *,
    temperature: float,
    chunk_size: int,
) -> tuple[Tensor, ...]:
    """Gradients of Σ grad_logp · logp + Σ grad_entropy · entropy for hidden states, the head's weight and, where it has
    one, its bias, in one pass.

    Costs three matrix products (logits, and the two gradients). The head's gradients are accumulated in float32 (or
    float64); the hidden states' comes back in their own precision.
    """
    head = Head.of(head)
    dtype, of_head = accumulate(hidden.dtype), HeadGradient(head)
    grad_hidden = torch.empty_like(hidden)
    for chunk, logits in logits_chunks(hidden, head, temperature, chunk_size):
        g = grad_logp[chunk].to(dtype)[:, None] / temperature
        here = tokens[chunk, None]
        # p - onehot is taken before either product: a product in low precision would round p and leave its error.
        if grad_entropy is None and head.cap is None:
            torch.ops.aten._softmax.out(logits, -1, False, out=logits)
            logits.scatter_add_(-1, here, logits.new_full((), -1.0).expand(len(logits), 1))
            scale = -g
        else:
            h = None if grad_entropy is None else grad_entropy[chunk].to(dtype)[:, None] / temperature
            _gradient_(logits, head, here, g, h, temperature)
            scale = -torch.ones_like(g)
        grad_hidden[chunk] = of_head.add_(logits, hidden[chunk], scale)
    return grad_hidden, *of_head.tensors


def _gradient_(logits: Tensor, head: Head, tokens: Tensor, g: Tensor, h: Tensor | None, temperature: float) -> None:
    """In place, row by row: logits -> (p · (g + h · (log p + H)) - onehot · g) · the cap's slope."""
    for rows in blocks(logits):
        anchor = head.anchor(logits[rows])
        log_p = log_softmax_(logits[rows])
        slope = None if anchor is None else head.slope(log_p, anchor, temperature)
        p = log_p.exp()
        if h is None:
            torch.mul(p, g[rows], out=log_p)
        else:
            entropy = -torch.linalg.vecdot(p, log_p)[:, None]
            log_p.add_(entropy).mul_(h[rows]).add_(g[rows]).mul_(p)
        log_p.scatter_add_(-1, tokens[rows], -g[rows])
        if slope is not None:
            log_p.mul_(slope)


def logits_chunks(hidden: Tensor, head: Head, temperature: float, chunk_size: int) -> Iterator[tuple[slice, Tensor]]:
    """(rows, logits / temperature of those rows), in a buffer that may be overwritten and the next chunk reuses."""
    dtype = accumulate(hidden.dtype)
    size = even(len(hidden), chunk_size)
    keep_freed_memory()
    buffer = torch.empty((size, len(head)), dtype=dtype, device=hidden.device)
    for start in range(0, len(hidden), size):
        chunk = slice(start, min(start + size, len(hidden)))
        yield chunk, head.logits_(buffer[: chunk.stop - start], hidden[chunk], temperature)


def even(num: int, chunk_size: int) -> int:
    """The size of chunks of at most `chunk_size` that are as even as can be: a small last one would cost the most."""
    return max(1, -(-num // max(1, -(-num // chunk_size))))


def blocks(logits: Tensor) -> Iterator[slice]:
    """Rows to work on at once: few on a CPU, where they should stay in its cache; all on an accelerator."""
    size = len(logits) if logits.is_cuda else max(1, BLOCK // logits.shape[1])
    return (slice(start, min(start + size, len(logits))) for start in range(0, len(logits), max(1, size)))


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed, up to 60 MB, for the next allocation.

    Else it hands the end of its heap back to the system time and again, and what is made between begins with page
    faults that can cost more than the arithmetic. Freeing one large allocation raises that limit to twice its size
    (mallopt(3), M_MMAP_THRESHOLD); the memory itself is never touched. Elsewhere this does nothing.
    """
    torch.empty(30 << 20, dtype=torch.uint8)


def log_softmax_(logits: Tensor) -> Tensor:
    """In place; -inf becomes the lowest finite number, so that p · log p is 0 there and not NaN."""
    torch.ops.aten._log_softmax.out(logits, -1, False, out=logits)
    return logits.clamp_(min=torch.finfo(logits.dtype).min)
