import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from opd.objective import rollout_correction as correction
from opd.objective.loss import policy_gradient


def logps(ratios, dtype=torch.float32):
    """(student_logp, rollout_logp) whose ratio π_student / π_rollout is as given."""
    ratios = torch.tensor(ratios, dtype=dtype)
    rollout = torch.full_like(ratios, math.log(0.1))
    return rollout + ratios.log(), rollout


def full(like):
    return torch.ones(like.shape, dtype=torch.bool)


def test_ratio_is_student_over_rollout():
    student, rollout = torch.tensor([[0.6]]).log(), torch.tensor([[0.2]]).log()
    weight, _ = correction.tis(student, rollout, full(student), low=0.1, high=10.0)
    torch.testing.assert_close(weight, torch.tensor([[3.0]]))
    # The learner likes the token 3 times better than the sampler did: out of [0.5, 2], and inside [0.5, 5].
    assert not correction.mis(student, rollout, full(student), low=0.5, high=2.0)[1].any()
    assert correction.mis(student, rollout, full(student), low=0.5, high=5.0)[1].all()
    # The other way round it would be 1/3, inside [0.3, 2].
    assert not correction.mis(student, rollout, full(student), low=0.3, high=2.0)[1].any()


def test_tis_clamps():
    student, rollout = logps([[0.1, 0.5, 1.0, 2.0, 6.0]])
    mask = torch.tensor([[True, True, True, True, True]])
    weight, keep = correction.tis(student, rollout, mask, low=0.5, high=2.0)
    torch.testing.assert_close(weight, torch.tensor([[0.5, 0.5, 1.0, 2.0, 2.0]]))
    assert torch.equal(keep, mask)
    weight, _ = correction.tis(student, rollout, mask, low=None, high=2.0)
    torch.testing.assert_close(weight, torch.tensor([[0.1, 0.5, 1.0, 2.0, 2.0]]))


def test_mis_masks_tokens_out_of_denominator():
    student, rollout = logps([[0.4, 0.8, 6.0, 1.5]])
    mask = torch.tensor([[True, True, True, False]])
    weight, keep = correction.mis(student, rollout, mask, low=0.5, high=2.0)
    assert keep.tolist() == [[False, True, False, False]]
    assert weight.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_icepop_zeroes_and_keeps_denominator():
    student, rollout = logps([[0.4, 0.8, 6.0]])
    weight, keep = correction.icepop(student, rollout, full(student), low=0.5, high=5.0)
    torch.testing.assert_close(weight, torch.tensor([[0.0, 0.8, 0.0]]))
    assert keep.all()
    assert math.isclose(weight.std(correction=0), 0.3771, abs_tol=1e-4)
    found = correction.metrics(student, rollout, full(student), weight, keep)
    assert math.isclose(found["masked"], 2 / 3)
    assert math.isclose(found["ess"], 1 / 3, rel_tol=1e-6)


def test_bounds_belong_to_the_range():
    student = torch.tensor([[0.5, 2.0]]).log()
    _, keep = correction.mis(student, torch.zeros(1, 2), full(student), low=0.5, high=2.0)
    assert keep.all()


def test_none_does_nothing():
    student, rollout = logps([[0.01, 100.0]])
    mask = torch.tensor([[True, False]])
    weight, keep = correction.none(student, rollout, mask, low=None, high=None)
    assert weight.tolist() == [[1.0, 0.0]]
    assert torch.equal(keep, mask)


@pytest.mark.parametrize(("level", "expected"), [("sequence", [3.0, 0.25]), ("geometric", [math.sqrt(3.0), 0.25])])
def test_levels_give_one_ratio_a_response(level, expected):
    student, rollout = logps([[1.5, 2.0, 9.0], [0.25, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    weight, _ = correction.tis(student, rollout, mask, low=None, high=10.0, level=level)
    torch.testing.assert_close(weight, torch.tensor(expected)[:, None] * mask)
    _, keep = correction.mis(student, rollout, mask, low=0.5, high=4.0, level=level)
    assert keep.tolist() == [[True, True, False], [False, False, False]]


@pytest.mark.parametrize("correct", [correction.tis, correction.mis, correction.icepop])
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_no_gradient_and_no_nan(correct, level):
    student = torch.linspace(-100, 0, 9).view(1, 9).requires_grad_()
    rollout = torch.linspace(0, -100, 9).view(1, 9)
    mask = full(student)
    mask[0, 0] = False
    dirty = rollout.clone()
    dirty[0, 0] = math.nan
    weight, keep = correct(student, dirty, mask, low=0.5, high=2.0, level=level)
    assert not weight.requires_grad
    assert torch.isfinite(weight).all()
    assert (weight[~keep] == 0).all()
    assert not keep[~mask].any()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-100, 0, width=32), min_size=1, max_size=12))
def test_no_correction_without_mismatch(logp):
    logp = torch.tensor([logp])
    for correct in (correction.tis, correction.mis, correction.icepop):
        weight, keep = correct(logp, logp, full(logp), low=0.5, high=2.0)
        assert (weight == 1).all()
        assert keep.all()
    found = correction.metrics(logp, logp, full(logp), torch.ones_like(logp), full(logp))
    expected = {"log_ppl_drift": 0, "ppl_ratio": 1, "abs_log_ratio": 0, "ratio_max": 1, "ess": 1, "masked": 0}
    assert found == pytest.approx(expected)


def test_metrics_by_hand():
    student = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, 0.0, 0.0]])
    rollout = torch.tensor([[-1.5, -0.5, -1.0], [-0.25, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    weight = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.0, 0.0]])
    found = correction.metrics(student, rollout, mask, weight, mask)
    assert found["log_ppl_drift"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["ppl_ratio"] == pytest.approx((math.exp(0.5) + math.exp(0.25)) / 2)
    assert found["abs_log_ratio"] == pytest.approx((0.5 + 1.5 + 0.25) / 3)
    assert found["ratio_max"] == pytest.approx(math.exp(0.5))
    assert found["ess"] == pytest.approx(2.5**2 / (3 * 2.25))
    assert found["masked"] == 0
    nothing = correction.metrics(student, rollout, torch.zeros_like(mask), weight, mask)
    assert set(nothing) == set(found)
    assert all(math.isnan(number) for number in nothing.values())


def test_weighted_loss_by_hand():
    """Ratios e^-0.5, e^2.5 and e^-0.2 with advantages 1, -1, 2: what a truncated weight does to the loss."""
    student, rollout = torch.tensor([[-1.5, -0.5, -1.2]]), torch.tensor([[-1.0, -3.0, -1.0]])
    advantage, mask = torch.tensor([[1.0, -1.0, 2.0]]), full(student)
    weight, keep = correction.tis(student, rollout, mask, low=None, high=2.0)
    torch.testing.assert_close(weight, torch.tensor([[math.exp(-0.5), 2.0, math.exp(-0.2)]]))
    loss = policy_gradient(student, advantage, weight, keep, 3)
    expected = -(math.exp(-0.5) * -1.5 - 2.0 * -0.5 + 2 * math.exp(-0.2) * -1.2) / 3
    assert loss.item() == pytest.approx(expected)
    # Masking instead: the second token is gone from loss and denominator, the others weigh 1.
    weight, keep = correction.mis(student, rollout, mask, low=0.5, high=2.0)
    loss = policy_gradient(student, advantage, weight, keep, int(keep.sum()))
    assert loss.item() == pytest.approx(-(-1.5 + 2 * -1.2) / 2)


def test_sequence_masking_drops_whole_responses():
    student = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])
    rollout = torch.tensor([[-0.5, -0.5], [-1.25, -1.25]])
    _, keep = correction.mis(student, rollout, full(student), low=0.5, high=2.0, level="sequence")
    assert keep.tolist() == [[False, False], [True, True]]  # ratios e^-1 = 0.368 and e^0.5 = 1.649
    weight, keep = correction.icepop(student, rollout, full(student), low=0.5, high=2.0, level="sequence")
    torch.testing.assert_close(weight, torch.tensor([[0.0, 0.0], [math.exp(0.5)] * 2]))
    assert keep.all()
