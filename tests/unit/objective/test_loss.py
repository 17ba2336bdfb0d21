import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings, strategies as st

from opd.objective.loss import clipped_policy_gradient, divisor, policy_gradient, summed

LOGP = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
ADVANTAGE = torch.tensor([[1.0, -1.0, 2.0], [0.5, 0.0, 7.0]])
WEIGHT = torch.tensor([[1.0, 0.5, 1.0], [2.0, 1.0, 1.0]])
KEEP = torch.tensor([[True, True, False], [True, False, False]])


def test_policy_gradient_by_hand():
    logp = LOGP.clone().requires_grad_()
    loss = policy_gradient(logp, ADVANTAGE, WEIGHT, KEEP, 3)
    assert math.isclose(loss.item(), -(1 * -1.0 + -0.5 * -2.0 + 1.0 * -4.0) / 3, rel_tol=1e-6)
    gradient = torch.autograd.grad(loss, logp)[0]
    torch.testing.assert_close(gradient, -torch.tensor([[1.0, -0.5, 0.0], [1.0, 0.0, 0.0]]) / 3)


def test_positive_advantage_raises_log_prob():
    logp = torch.tensor([[-1.0]], requires_grad=True)
    one = torch.ones(1, 1)
    policy_gradient(logp, one, one, one.bool(), 1).backward()
    assert logp.grad is not None
    assert (logp.grad < 0).all()


def test_what_is_not_kept_may_hold_anything():
    dirty = torch.where(KEEP, LOGP, math.nan).requires_grad_()
    loss = policy_gradient(dirty, torch.where(KEEP, ADVANTAGE, math.inf), WEIGHT, KEEP, 3)
    clean = policy_gradient(LOGP, ADVANTAGE, WEIGHT, KEEP, 3)
    assert torch.equal(loss, clean)
    assert torch.isfinite(torch.autograd.grad(loss, dirty)[0]).all()


def test_zero_advantage_is_exactly_no_gradient():
    logp = LOGP.clone().requires_grad_()
    loss = policy_gradient(logp, torch.zeros(2, 3), WEIGHT, KEEP, 3)
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, logp)[0] == 0).all()


def test_an_empty_batch_can_still_run_backward():
    logp = LOGP.clone().requires_grad_()
    nothing = torch.zeros_like(KEEP)
    for by in (
        0,
        divisor(nothing, 0, 0, aggregation="token_mean"),
        divisor(nothing, 0, 0, aggregation="sequence_mean"),
    ):
        loss = policy_gradient(logp, ADVANTAGE, WEIGHT, nothing, by) + summed(logp, nothing, by)
        assert loss.item() == 0
        assert (torch.autograd.grad(loss, logp)[0] == 0).all()


def test_divisors_by_hand():
    count = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert divisor(count, 4, 2, aggregation="token_mean").tolist() == [[4.0]] * 3
    assert divisor(count, 4, 2, aggregation="sequence_mean").tolist() == [[6.0], [2.0], [2.0]]


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.lists(st.integers(1, 5), max_size=3))
def test_loss_is_invariant_to_splitting(aggregation, seed, cuts):
    generator = torch.Generator().manual_seed(seed)
    logp, advantage, weight = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    count = torch.rand(6, 4, generator=generator) > 0.4
    keep = count & (torch.rand(6, 4, generator=generator) > 0.3)
    totals = int(count.sum()), int(count.any(-1).sum())
    whole = policy_gradient(logp, advantage, weight, keep, divisor(count, *totals, aggregation=aggregation))
    bounds = [0, *sorted(set(cuts)), 6]
    parts = sum(
        policy_gradient(
            logp[low:high], advantage[low:high], weight[low:high], keep[low:high],
            divisor(count[low:high], *totals, aggregation=aggregation),
        )
        for low, high in pairwise(bounds)
    )  # fmt: skip
    torch.testing.assert_close(torch.as_tensor(parts), whole, rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 5))
def test_padding_does_not_change_the_loss(width):
    count = torch.tensor([[True, True, False], [True, False, False]])

    def loss(extra):
        pad = torch.zeros(2, extra)
        wide = [torch.cat([x, pad], 1) for x in (LOGP, ADVANTAGE, WEIGHT)]
        keep = torch.cat([count, pad.bool()], 1)
        return policy_gradient(*wide, keep, divisor(keep, 3, 2, aggregation="sequence_mean"))

    torch.testing.assert_close(loss(width), loss(0))


def test_summed_loss():
    loss = torch.tensor([[1.0, 4.0, math.nan]], requires_grad=True)
    total = summed(loss, torch.tensor([[True, True, False]]), 2)
    assert total.item() == 2.5
    assert torch.autograd.grad(total, loss)[0].tolist() == [[0.5, 0.5, 0.0]]


def test_clipping_by_hand():
    old = torch.zeros(1, 4)
    logp = torch.tensor([[2.0, 2.0, 0.5, 0.5]]).log().requires_grad_()
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    ones = torch.ones(1, 4)
    loss = clipped_policy_gradient(logp, old, advantage, ones, ones.bool(), 4, clip_low=0.2, clip_high=0.3)
    assert loss.item() == pytest.approx(-(1.3 - 2.0 + 0.5 - 0.8) / 4)
    # Clipped tokens have no gradient: the first has risen enough, the last has fallen enough.
    torch.testing.assert_close(torch.autograd.grad(loss, logp)[0], torch.tensor([[0.0, 0.5, -0.125, 0.0]]))


def test_on_policy_clipping_changes_nothing():
    logp = LOGP.clone().requires_grad_()
    clipped = clipped_policy_gradient(logp, LOGP, ADVANTAGE, WEIGHT, KEEP, 3, clip_low=0.2, clip_high=0.2)
    plain = policy_gradient(logp, ADVANTAGE, WEIGHT, KEEP, 3)
    torch.testing.assert_close(torch.autograd.grad(clipped, logp), torch.autograd.grad(plain, logp))
    dirty = torch.where(KEEP, LOGP, math.nan).requires_grad_()
    loss = clipped_policy_gradient(dirty, dirty, ADVANTAGE, WEIGHT, KEEP, 3, clip_low=0.2, clip_high=0.2)
    assert torch.isfinite(torch.autograd.grad(loss, dirty)[0]).all()
