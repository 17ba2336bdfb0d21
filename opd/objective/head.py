"""A model's output head: logits from the hidden states that it reads, and the gradients back through it.

    logits = cap · tanh(scale · (hidden @ weight.T + bias) / cap)      without a cap: scale · (hidden @ weight.T + bias)

A softmax is of logits / temperature. The derivative of a capped logit is recovered from its log-prob, so that nothing
as large as the logits is kept for it: d logit / d product = scale · (1 - (logit / cap)²).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Logits = Float[Tensor, "token vocabulary"]


@dataclass(frozen=True)
class Head:
    """An output head; `scale` and `cap` are numbers of the model's config, not learned."""

    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, " vocabulary"] | None = None
    scale: float = 1.0
    cap: float | None = None

    def __len__(self) -> int:
        return len(self.weight)

    @classmethod
    def of(cls, head: "Head | Tensor") -> "Head":
        """A bare weight is a head without bias, scale and cap."""
        return head if isinstance(head, Head) else cls(head)

    def map(self, change: Any) -> "Head":
        """The head whose tensors are `change(tensor)`."""
        return replace(self, weight=change(self.weight), bias=None if self.bias is None else change(self.bias))

    def logits_(self, out: Logits, hidden: Float[Tensor, "token width"], temperature: float) -> Logits:
        """Writes logits / temperature into `out`, accumulated in its precision."""
        divisor = (temperature if self.cap is None else self.cap) / self.scale
        logits_into(out, hidden, self.weight, divisor)
        if self.bias is not None:
            out.add_(self.bias.to(out.dtype) / divisor)
        return out if self.cap is None else out.tanh_().mul_(self.cap / temperature)

    def anchor(self, logits: Logits) -> Float[Tensor, "token 1"] | None:
        """What `slope` needs of the logits before they become log-probs; None without a cap."""
        return None if self.cap is None else logits[:, :1].clone()

    def slope(self, log_p: Logits, anchor: Float[Tensor, "token 1"], temperature: float) -> Logits:
        """The derivative of each capped logit, 1 - (logit / cap)², from the log-probs of logits / temperature."""
        assert self.cap is not None
        # A logit is its log-prob and the normaliser, which is the same for all tokens of a row.
        ratio = (log_p + (anchor - log_p[:, :1])).mul_(temperature / self.cap)
        return torch.addcmul(ratio.new_ones(()), ratio, ratio, value=-1)


class HeadGradient:
    """Gradients of weight and bias, summed over chunks of tokens in at least float32."""

    def __init__(self, head: Head):
        self.head = head

        def zeros(tensor: Tensor) -> Tensor:
            return torch.zeros(tensor.shape, dtype=accumulate(tensor.dtype), device=tensor.device)

        self.weight, self.bias = zeros(head.weight), None if head.bias is None else zeros(head.bias)

    @property
    def tensors(self) -> list[Tensor]:
        """The weight's, and the bias's where there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def add_(
        self, gradient: Logits, hidden: Float[Tensor, "token width"], scale: Float[Tensor, "token 1"]
    ) -> Float[Tensor, "token width"]:
        """Adds a chunk's part, whose derivative by the products is scale · head.scale · `gradient`; returns that of the
        hidden states.
        """
        if self.bias is not None:
            self.bias.addmv_(gradient.T, scale[:, 0], alpha=self.head.scale)
        # Scaling by rows is left to the narrow side of each product.
        scale = scale if self.head.scale == 1 else scale * self.head.scale
        add_product_(self.weight, gradient.T, hidden.to(gradient.dtype) * scale, self.head.weight.dtype)
        return (product(gradient, self.head.weight) * scale).to(hidden.dtype)


def logits_into(out: Tensor, hidden: Tensor, weight: Tensor, divisor: float) -> Tensor:
    """Writes hidden @ weight.T / divisor into `out`, accumulated in its precision."""
    if weight.dtype == out.dtype:
        return torch.mm(hidden.to(out.dtype) / divisor, weight.T, out=out)
    if weight.is_cuda:
        return torch.mm(hidden.to(weight.dtype), weight.T, out_dtype=out.dtype, out=out).div_(divisor)
    scaled = hidden.to(out.dtype) / divisor
    for part in _parts(weight):
        torch.mm(scaled, weight[part].to(out.dtype).T, out=out[:, part])
    return out


def product(gradient: Tensor, weight: Tensor) -> Tensor:
    """The product gradient @ weight, accumulated in the precision of `gradient`."""
    if weight.dtype == gradient.dtype:
        return gradient @ weight
    if weight.is_cuda:
        return torch.mm(gradient.to(weight.dtype), weight, out_dtype=gradient.dtype)
    out = gradient.new_zeros((len(gradient), weight.shape[1]))
    for part in _parts(weight):
        out.addmm_(gradient[:, part], weight[part].to(gradient.dtype))
    return out


def add_product_(out: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    """In place: out + left @ right, accumulated in the precision of `out` from factors that `dtype` may hold."""
    if dtype == out.dtype or not out.is_cuda:
        out.addmm_(left, right)
    else:
        torch.addmm(out, left.to(dtype), right.to(dtype), out_dtype=out.dtype, out=out)


def accumulate(dtype: torch.dtype) -> torch.dtype:
    """The precision that sums are kept in: float64 for float64, float32 for anything less."""
    return torch.promote_types(dtype, torch.float32)


def _parts(weight: Tensor, size: int = 16384) -> Iterator[slice]:
    return (slice(start, min(start + size, len(weight))) for start in range(0, len(weight), size))
