"""A teacher's distributions as a table: log-probs of the likeliest tokens and of the sampled one at each position."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Table:
    """`ids` begin with the sampled token, which may be among the K likeliest too; then it is there twice.

    What is left of the probability is the other tokens' in equal parts: their sum and the K likeliest are then the
    distribution's own, and no more than these has a meaning.
    """

    ids: Int[Tensor, "token k_and_one"]
    logp: Float[Tensor, "token k_and_one"]

    def fill_(self, out: Float[Tensor, "chunk vocabulary"], rows: slice) -> None:
        """Fills `out` with the log-probs of some positions."""
        ids, logp = self.ids[rows].to(out.device), self.logp[rows].to(out)
        again = torch.zeros_like(ids, dtype=torch.bool)
        again[:, 1:] = ids[:, 1:] == ids[:, :1]
        inside = logp.masked_fill(again, -torch.inf).double().logsumexp(-1, keepdim=True)
        rest = torch.log(-torch.expm1(inside.clamp(max=-torch.finfo(torch.float64).eps)))
        others = (out.shape[-1] - (~again).sum(-1, keepdim=True)).clamp(min=1)
        least = logp[:, 1:].min(-1, keepdim=True).values.double()  # by rounding the rest could be likelier than these
        out[:] = torch.minimum(rest - others.double().log(), least).to(out)
        out.scatter_(-1, ids, logp)
