"""A teacher's table of likeliest tokens gives the divergence over the top K that its whole distribution gives."""

import pytest
import torch

from opd.objective.divergence import forward_kl, hellinger, reverse_kl
from opd.objective.fused import measure
from opd.objective.support import Support
from opd.objective.table import Table
from tests.covering import covering

VOCAB, TOKENS, WIDTH = 23, 40, 6
SAME = ("divergence", "student_logp", "reference_logp", "student_mass", "reference_mass", "overlap", "student_entropy")


def world() -> tuple[torch.Tensor, ...]:
    """Hidden states and heads of student and teacher, and tokens of which some are likely to the teacher, some not."""
    draw = torch.Generator().manual_seed(0)
    hidden, theirs = (torch.randn(TOKENS, WIDTH, generator=draw, dtype=torch.float64) for _ in range(2))
    head, their_head = (torch.randn(VOCAB, WIDTH, generator=draw, dtype=torch.float64) for _ in range(2))
    return hidden, head, theirs, their_head, torch.randint(0, VOCAB, (TOKENS,), generator=draw)


def table(logp: torch.Tensor, tokens: torch.Tensor, k: int) -> Table:
    ids = torch.cat([tokens[:, None], logp.topk(k).indices], -1)
    return Table(ids, logp.gather(-1, ids))


TAILS = ["renormalize", "bucket", "sampled", "drop"]


@pytest.mark.parametrize(
    ("k", "tail", "divergence", "clamp"),
    covering([1, 5, VOCAB], TAILS, [reverse_kl, forward_kl, hellinger], [None, 0.5]),
)
def test_matches_full_distributions(k: int, tail, divergence, clamp):
    hidden, head, theirs, their_head, tokens = world()
    logp = (theirs @ their_head.T).log_softmax(-1)
    inside = (logp.topk(k).indices == tokens[:, None]).any(-1)
    assert k == VOCAB or 0 < inside.sum() < TOKENS, "sampled tokens both inside and outside"
    options = {
        "support": Support("topk", k, "teacher", tail), "tokens": tokens, "chunk_size": 16, "clamp": clamp,
        "entropy_weight": torch.full((TOKENS,), 0.1, dtype=torch.float64), "with_statistics": True,
    }  # fmt: skip
    found = []
    for teacher, tables in ((([theirs], [their_head]), []), (([], []), [table(logp, tokens, k)])):
        leaves = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
        measured = measure(*leaves, *teacher, divergence(), tables=tables, **options)
        found.append((measured, torch.autograd.grad(measured.loss, leaves)))
    (whole, grads), (ours, our_grads) = found
    for name in SAME:
        torch.testing.assert_close(getattr(ours, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    for one, other in zip(our_grads, grads, strict=True):
        assert other.abs().max() > 0.01
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_a_table_beside_heads_is_refused():
    hidden, head, theirs, their_head, tokens = world()
    ours = table((theirs @ their_head.T).log_softmax(-1), tokens, 3)
    with pytest.raises(ValueError, match="not as both"):
        measure(hidden, head, [theirs], [their_head], reverse_kl(), tables=[ours])


def test_remaining_probability():
    _, _, theirs, their_head, tokens = world()
    logp = (theirs @ their_head.T).log_softmax(-1)
    ours, out = table(logp, tokens, 5), torch.empty(10, VOCAB, dtype=torch.float64)
    ours.fill_(out, slice(20, 30))
    torch.testing.assert_close(out.exp().sum(-1), torch.ones(10, dtype=torch.float64))
    torch.testing.assert_close(out.gather(-1, ours.ids[20:30]), ours.logp[20:30])
    assert torch.equal(out.topk(5).indices.sort().values, logp[20:30].topk(5).indices.sort().values)
