import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from opd.objective import divergence, shaping
from opd.objective.advantage import discounted_return
from opd.step.learn import weight_at

MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
VALUES = torch.tensor([[1.0, 3.0, math.nan], [5.0, math.nan, math.nan], [2.0, -4.0, 8.0]])
GROUP = torch.tensor([0, 0, 1])


def test_sequence_return():
    assert shaping.sequence_return(VALUES, MASK).tolist() == [[4.0, 4.0, 0.0], [5.0, 0.0, 0.0], [6.0, 6.0, 6.0]]


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("none", [[1, 3, 0], [5, 0, 0], [2, -4, 8]]),
        ("group", [[-2, 0, 0], [2, 0, 0], [0, -6, 6]]),
        ("batch", [[-1.5, 0.5, 0], [2.5, 0, 0], [-0.5, -6.5, 5.5]]),
    ],
)
def test_baselines_by_hand(baseline, expected):
    found = shaping.subtract_baseline(VALUES, MASK, GROUP, baseline=baseline)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_clip_says_how_often_it_acts():
    clipped, share = shaping.clip(torch.where(MASK, VALUES, 99.0), MASK, limit=3.0)
    assert clipped[MASK].tolist() == [1.0, 3.0, 3.0, 2.0, -3.0, 3.0]
    assert share == pytest.approx(3 / 6)
    same, share = shaping.clip(VALUES, MASK, limit=None)
    assert same is VALUES
    assert share == 0


def test_stay_near_is_the_gradient_of_an_added_kl():
    generator = torch.Generator().manual_seed(0)
    logits, initial, reference = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    logp, initial, reference = logits.log_softmax(-1), initial.log_softmax(-1), reference.log_softmax(-1)
    d = divergence.hellinger()
    exact = d.exact(logp, reference) + 0.3 * divergence.reverse_kl().exact(logp, initial)
    u = (logp - reference).detach()[None]
    advantage = shaping.stay_near(d.advantage(u), logp.detach()[None], initial[None], kl_coef=0.3)[0]
    loss = -(logp.detach().exp() * advantage * logp).sum()
    found = torch.autograd.grad(loss, logits, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(exact, logits))


def test_extrapolation_passes_the_teacher():
    student, reference, anchor = torch.tensor([-1.0]), torch.tensor([-0.5]), torch.tensor([-2.0])
    u = student - reference
    found = shaping.extrapolate(u, student, anchor, coefficient=1.25)
    # log(student / anchor) = 1, log(reference / anchor) = 1.5
    assert divergence.reverse_kl().advantage(found).item() == pytest.approx(1.25 * 1.5 - 1)
    assert shaping.extrapolate(u, student, anchor, coefficient=1) is u


def test_reward_is_added_on_a_schedule():
    advantage, reward = torch.zeros(3, 3), torch.tensor([1.0, -1.0, 0.5])
    for progress, weight in [(0.0, 2.0), (0.5, 1.0), (1.0, 0.0)]:
        found = shaping.add_reward(advantage, reward, MASK, weight=weight_at([2.0, 0.0], progress))
        torch.testing.assert_close(found, torch.where(MASK, weight * reward[:, None], 0.0))


def test_pass_rate_weight_by_hand():
    correct, group = torch.tensor([True, False, True, True, True, False, False, False]), torch.arange(8) // 4
    weight = shaping.pass_rate_weight(correct, group, power=1)
    torch.testing.assert_close(weight, torch.tensor([0.75] * 8))
    solved = shaping.pass_rate_weight(torch.tensor([True, True]), torch.tensor([0, 0]), power=1)
    assert solved.tolist() == [0.0, 0.0]
    assert (shaping.pass_rate_weight(torch.tensor([True, True]), torch.tensor([0, 0]), power=0) == 1).all()


def test_prefix_weights_by_hand():
    advantage = torch.tensor([[0.2, -0.3, 0.5, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    found = shaping.prefix_weight(advantage, mask, strength=0.5)
    torch.testing.assert_close(found, torch.tensor([[1.5, 1.4, 1.25, 0.0]]))
    assert torch.isfinite(shaping.prefix_weight(torch.zeros(1, 3), torch.ones(1, 3).bool(), strength=1.0)).all()


# ---- credit, by enumerating every short response


def responses(length, vocabulary=3):
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


def tabular(length, vocabulary=3, seed=0, spread=1.0):
    """A policy with free logits for every prefix: one table a position, indexed by the prefix as a number."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(vocabulary**t, vocabulary) for t in range(length)]
    return [spread * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def token_logp(tables, tokens):
    prefix, found = torch.zeros(len(tokens), dtype=torch.long), []
    for t, table in enumerate(tables):
        found.append(table.log_softmax(-1)[prefix, tokens[:, t]])
        prefix = prefix * table.shape[1] + tokens[:, t]
    return torch.stack(found, 1)


def estimator(credit, length, seed=0):
    """(expected gradient, its variance a response) of an estimator with this credit, and the student's tables."""
    tokens = responses(length)
    student = [table.requires_grad_() for table in tabular(length, seed=seed)]
    teacher = tabular(length, seed=seed + 100)
    logp = token_logp(student, tokens)
    signal = divergence.reverse_kl().advantage((logp - token_logp(teacher, tokens)).detach())
    probability = logp.detach().sum(-1).exp()
    returns = credit(signal, torch.ones_like(tokens, dtype=torch.bool))
    loss = -(probability[:, None] * returns * logp).sum()
    expected = torch.autograd.grad(loss, student, retain_graph=True)
    second = 0.0
    for row in range(len(tokens)):
        each = torch.autograd.grad(-(returns[row] * logp[row]).sum(), student, retain_graph=True)
        second += float(probability[row] * sum((g**2).sum() for g in each))
    variance = second - float(sum((g**2).sum() for g in expected))
    return expected, variance, student, teacher, tokens


CREDITS = {
    "sequence": shaping.sequence_return,
    "reward_to_go": lambda signal, mask: discounted_return(signal, mask, 1.0),
    "token": lambda signal, mask: discounted_return(signal, mask, 0.0),
}


@pytest.mark.parametrize("credit", ["sequence", "reward_to_go"])
def test_sequence_credit_is_sequence_gradient(credit):
    found, _, student, teacher, tokens = estimator(CREDITS[credit], 3)
    logp = token_logp(student, tokens).sum(-1)
    exact = divergence.reverse_kl().exact(logp, token_logp(teacher, tokens).sum(-1))
    torch.testing.assert_close(found, torch.autograd.grad(exact, student))


def test_token_credit_is_position_gradient():
    found, _, student, teacher, _ = estimator(CREDITS["token"], 3)
    total = 0.0
    for t in range(3):
        prefixes = responses(t)
        reached = token_logp([table.detach() for table in student[:t]], prefixes).sum(-1).exp() if t else torch.ones(1)
        total += (reached * divergence.reverse_kl().exact(student[t].log_softmax(-1), teacher[t].log_softmax(-1))).sum()
    torch.testing.assert_close(found, torch.autograd.grad(total, student))


def test_variance_of_sequence_level_credit_grows_faster_with_length():
    """seed-003: each token is coupled to every other one's signal."""
    ratios = []
    for length in (1, 2, 4, 6):
        variance = {name: sum(estimator(CREDITS[name], length, seed)[1] for seed in range(2)) for name in CREDITS}
        ratios.append(variance["sequence"] / variance["token"])
        if length > 1:
            assert variance["token"] < variance["reward_to_go"] < variance["sequence"]
    assert ratios[0] == pytest.approx(1)
    assert ratios == sorted(ratios)
    assert ratios[-1] > 5


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 100), st.permutations(range(4)))
def test_rows_may_come_in_any_order(seed, order):
    generator = torch.Generator().manual_seed(seed)
    values, mask = torch.randn(4, 5, generator=generator), torch.rand(4, 5, generator=generator) > 0.3
    group, order = torch.tensor([0, 0, 1, 1]), list(order)
    for baseline in ("group", "batch"):
        plain = shaping.subtract_baseline(values, mask, group, baseline=baseline)
        moved = shaping.subtract_baseline(values[order], mask[order], group[order], baseline=baseline)
        torch.testing.assert_close(plain[order], moved)
