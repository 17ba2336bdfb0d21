import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st

from opd.objective import divergence

# A new divergence is one row here: its name, how it is built, f(r) as it stands in the literature.
DIVERGENCES = {
    "reverse_kl": (divergence.reverse_kl, lambda r: r * r.log()),
    "forward_kl": (divergence.forward_kl, lambda r: -r.log()),
    "jeffreys": (divergence.jeffreys, lambda r: (r - 1) * r.log()),
    "jensen_shannon": (divergence.jensen_shannon, lambda r: (r * r.log() - (r + 1) * ((r + 1) / 2).log()) / 2),
    "hellinger": (divergence.hellinger, lambda r: (r.sqrt() - 1) ** 2),
    "total_variation": (divergence.total_variation, lambda r: (r - 1).abs() / 2),
    **{
        f"generalized_jensen_shannon({beta})": (
            partial(divergence.generalized_jensen_shannon, beta=beta),
            lambda r, b=beta: (
                ((1 - b) * r * (r / (b + (1 - b) * r)).log() - b * (b + (1 - b) * r).log()) / (b * (1 - b))
            ),
        )
        for beta in (0.001, 0.1, 0.5, 0.7, 0.999)
    },
    **{
        f"tsallis({alpha})": (partial(divergence.tsallis, alpha=alpha), lambda r, a=alpha: (r**a - r) / (a - 1))
        for alpha in (0.3, 0.95, 1.5, 2.0)
    },
    **{
        f"alpha_divergence({alpha})": (
            partial(divergence.alpha_divergence, alpha=alpha),
            lambda r, a=alpha: (r**a - a * r + a - 1) / (a * (a - 1)),
        )
        for alpha in (-1.0, 0.5, 1.05, 2.0)
    },
    **{
        f"skew_kl({alpha})": (
            partial(divergence.skew_kl, alpha=alpha),
            lambda r, a=alpha: r * (r / (a * r + 1 - a)).log(),
        )
        for alpha in (0.0, 0.1, 0.9)
    },
    **{
        f"skew_forward_kl({alpha})": (
            partial(divergence.skew_forward_kl, alpha=alpha),
            lambda r, a=alpha: -(a + (1 - a) * r).log(),
        )
        for alpha in (0.0, 0.1, 0.9)
    },
}
ROWS = [pytest.param(build, f, id=name) for name, (build, f) in DIVERGENCES.items()]


def distributions(seed, vocabulary=7, rows=5, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, rows, vocabulary, generator=generator, dtype=torch.float64) * spread
    return logits[0].requires_grad_(), logits[1].log_softmax(-1)


def sampled_gradient(logits, reference_logp, d):
    """-E[advantage · ∇ log student], with every token of the vocabulary weighed by its probability."""
    logp = logits.log_softmax(-1)
    loss = -(logp.detach().exp() * d.advantage((logp - reference_logp).detach()) * logp).sum()
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize(("build", "f"), ROWS)
@pytest.mark.parametrize("seed", range(2))
def test_exact_matches_definition(build, f, seed):
    logits, reference_logp = distributions(seed)
    logp = logits.log_softmax(-1)
    written_out = (reference_logp.exp() * f((logp - reference_logp).exp())).sum(-1)
    torch.testing.assert_close(build().exact(logp, reference_logp), written_out, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("build", "f"), ROWS)
@pytest.mark.parametrize("seed", range(2))
def test_expected_advantage_is_exact_gradient(build, f, seed):
    logits, reference_logp = distributions(seed)
    exact = build().exact(logits.log_softmax(-1), reference_logp).sum()
    expected = torch.autograd.grad(exact, logits)[0]
    torch.testing.assert_close(sampled_gradient(logits, reference_logp, build()), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("build", "f"), ROWS)
def test_value_averages_to_the_exact_divergence(build, f):
    logits, reference_logp = distributions(11)
    logp = logits.detach().log_softmax(-1)
    expected = (logp.exp() * build().value(logp - reference_logp)).sum(-1)
    torch.testing.assert_close(build().exact(logp, reference_logp), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("build", "f"), ROWS)
def test_slope_is_the_derivative_of_the_generator(build, f):
    u = torch.linspace(-8, 8, 4001, dtype=torch.float64).requires_grad_()
    d = build()
    inner = torch.autograd.grad(d.generator(u).sum(), u)[0] * torch.exp(-u.detach())
    at_one = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    offset = torch.autograd.grad(d.generator(at_one).sum(), at_one)[0]
    torch.testing.assert_close(d.slope(u.detach()), inner - offset, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("build", "f"), ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_for_log_ratios_within_100(build, f, dtype):
    u = torch.linspace(-100, 100, 2001, dtype=dtype)
    assert torch.isfinite(build().value(u)).all()
    assert torch.isfinite(build().advantage(u)).all()
    logp = torch.tensor([[-100.0, -1e-43], [-1e-43, -100.0], [0.0, -math.inf]], dtype=dtype, requires_grad=True)
    for reference in (logp.detach().flip(-1), logp.detach()):
        total = build().exact(logp, reference)
        assert torch.isfinite(total).all()
        assert torch.isfinite(torch.autograd.grad(total.sum(), logp)[0]).all()


@pytest.mark.parametrize(("build", "f"), ROWS)
def test_zero_where_student_equals_reference(build, f):
    zeros = torch.zeros(3, 4)
    assert (build().advantage(zeros) == 0).all()
    assert (build().value(zeros) == 0).all()
    logits, _ = distributions(3)
    total = build().exact(logits.log_softmax(-1), logits.detach().log_softmax(-1))
    assert (total.abs() < 1e-15).all()
    assert torch.autograd.grad(total.sum(), logits)[0].abs().max() < 1e-15


@pytest.mark.parametrize(("build", "f"), ROWS)
@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.floats(0.1, 20.0))
def test_nonnegative_with_decreasing_advantage(build, f, seed, spread):
    logits, reference_logp = distributions(seed, spread=spread)
    assert (build().exact(logits.log_softmax(-1), reference_logp) > -1e-12).all()
    advantage = build().advantage(torch.linspace(-20, 20, 401, dtype=torch.float64))
    assert (advantage.diff() <= 1e-12).all()


def test_reverse_kl_weight_is_k1():
    u = torch.tensor([-2.0, 0.0, 3.5])
    torch.testing.assert_close(divergence.reverse_kl().advantage(u), -u, rtol=0, atol=0)
    torch.testing.assert_close(divergence.reverse_kl().value(u), u)


def test_precision_in_is_precision_out():
    u = torch.zeros(2, dtype=torch.bfloat16)
    assert divergence.reverse_kl().advantage(u).dtype == torch.bfloat16
    assert divergence.reverse_kl().exact(u.log_softmax(-1), u.log_softmax(-1)).dtype == torch.float32


@pytest.mark.parametrize(
    ("one", "other", "scale"),
    [
        (partial(divergence.tsallis, alpha=0.5), divergence.hellinger, 1.0),
        (partial(divergence.tsallis, alpha=1.0), divergence.reverse_kl, 1.0),
        (partial(divergence.alpha_divergence, alpha=0.0), divergence.forward_kl, 1.0),
        (partial(divergence.alpha_divergence, alpha=1.0), divergence.reverse_kl, 1.0),
        (partial(divergence.alpha_divergence, alpha=0.5), divergence.hellinger, 2.0),
        (partial(divergence.generalized_jensen_shannon, beta=0.0), divergence.forward_kl, 1.0),
        (partial(divergence.generalized_jensen_shannon, beta=1.0), divergence.reverse_kl, 1.0),
        (partial(divergence.generalized_jensen_shannon, beta=0.5), divergence.jensen_shannon, 4.0),
    ],
)
def test_families_contain_known_members(one, other, scale):
    logits, reference_logp = distributions(5)
    logp = logits.log_softmax(-1)
    torch.testing.assert_close(one().exact(logp, reference_logp), scale * other().exact(logp, reference_logp))
    u = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(one().advantage(u), scale * other().advantage(u))


@pytest.mark.parametrize(("end", "near"), [(0.0, 1e-7), (1.0, 1 - 1e-7)])
def test_generalized_jensen_shannon_limits(end, near):
    logits, reference_logp = distributions(6)
    logp = logits.log_softmax(-1)
    u = torch.linspace(-3, 3, 13, dtype=torch.float64)
    at, close = (divergence.generalized_jensen_shannon(beta=beta) for beta in (end, near))
    torch.testing.assert_close(close.exact(logp, reference_logp), at.exact(logp, reference_logp), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(close.advantage(u), at.advantage(u), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(close.value(u), at.value(u), rtol=1e-4, atol=1e-5)


VALUE_OF = {
    name: lambda name=name: divergence.value_weighted(of=getattr(divergence, name)())
    for name in ("forward_kl", "jensen_shannon", "hellinger", "jeffreys")
}
BIASED = {
    "k3_naive": (divergence.k3_naive, lambda r: 1 / r - 1 + r.log()),
    "k2_naive": (divergence.k2_naive, lambda r: r.log() ** 2 / 2),
    "value of forward_kl": (VALUE_OF["forward_kl"], lambda r: -r.log() / r),
    "value of hellinger": (VALUE_OF["hellinger"], lambda r: (r.sqrt() - 1) ** 2 / r),
}


@pytest.mark.parametrize(("build", "value"), BIASED.values(), ids=BIASED)
def test_biased_forms_have_no_exact_form(build, value):
    u = torch.linspace(-3, 3, 25, dtype=torch.float64)
    torch.testing.assert_close(build().advantage(u), -value(u.exp()))
    with pytest.raises(ValueError, match="no exact form"):
        build().exact(u.log_softmax(-1), u.log_softmax(-1))
    zeros = torch.zeros(2)
    assert (build().advantage(zeros) == 0).all()
    wide = torch.linspace(-100, 100, 201)
    assert torch.isfinite(build().advantage(wide)).all()


def exact_gradient(logits, reference_logp, d):
    return torch.autograd.grad(d.exact(logits.log_softmax(-1), reference_logp).sum(), logits)[0]


def cosine_with_the_truth(biased, true):
    cosines = []
    for seed in range(40):
        logits, reference_logp = distributions(seed, spread=1.5)
        found = sampled_gradient(logits, reference_logp, biased).flatten()
        cosines.append(torch.cosine_similarity(found, exact_gradient(logits, reference_logp, true).flatten(), dim=0))
    return float(torch.stack(cosines).mean())


@pytest.mark.parametrize("name", VALUE_OF)
def test_value_weights_point_against_the_gradient(name):
    """field-notes section 2; a sign that the collinear families (next test) cannot show."""
    assert cosine_with_the_truth(VALUE_OF[name](), getattr(divergence, name)()) < -0.3


@pytest.mark.parametrize("collinear", [divergence.reverse_kl(), divergence.tsallis(alpha=1.5)])
def test_collinear_value_weights(collinear):
    assert cosine_with_the_truth(divergence.value_weighted(of=collinear), collinear) > 0.999


def test_k3_weight_climbs_forward_kl():
    logits, reference_logp = distributions(2)
    reverse = exact_gradient(logits, reference_logp, divergence.reverse_kl())
    forward = exact_gradient(logits, reference_logp, divergence.forward_kl())
    torch.testing.assert_close(sampled_gradient(logits, reference_logp, divergence.k3_naive()), reverse - forward)


def test_mixed_divergences_choose_by_token():
    log_ratio = torch.tensor([[1.0, 1.0], [-2.0, 0.5]])
    entropy = torch.tensor([[0.1, 2.0], [1.0, 0.0]])
    marked = torch.tensor([[True, False], [False, True]])
    forward, reverse = divergence.forward_kl(), divergence.reverse_kl()
    by_entropy = divergence.entropy_aware(threshold=1.0).at(marked, entropy)
    expected = torch.where(entropy >= 1, forward.advantage(log_ratio), reverse.advantage(log_ratio))
    torch.testing.assert_close(by_entropy.advantage(log_ratio), expected)
    by_filter = divergence.split(inside=reverse, outside=forward).at(marked, entropy)
    torch.testing.assert_close(
        by_filter.advantage(log_ratio), torch.where(marked, reverse.advantage(log_ratio), forward.advantage(log_ratio))
    )
    torch.testing.assert_close(
        by_filter.value(log_ratio), torch.where(marked, reverse.value(log_ratio), forward.value(log_ratio))
    )
    plain = reverse.at(marked, entropy)
    assert torch.equal(plain.advantage(log_ratio), reverse.advantage(log_ratio))
    assert sum(int(where.sum()) for _, where in by_entropy.parts) == 4


def test_clamp_share():
    log_ratio = torch.tensor([[30.0, -3.0, -21.0, 99.0]])
    mask = torch.tensor([[True, True, True, False]])
    plain = divergence.reverse_kl().at(mask, torch.zeros(1, 4))
    assert plain.clamped(20).advantage(log_ratio).tolist() == [[-20.0, 3.0, 20.0, -20.0]]
    assert divergence.share_beyond(log_ratio, mask, 20) == pytest.approx(2 / 3)
    assert plain.clamped(None) is plain
    assert divergence.share_beyond(log_ratio, mask, None) == 0


@pytest.mark.parametrize(("build", "f"), ROWS)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), order=st.permutations(range(7)))
def test_order_of_the_vocabulary_does_not_matter(build, f, seed, order):
    logits, reference_logp = distributions(seed)
    logp, order = logits.detach().log_softmax(-1), list(order)
    found = build().exact(logp[:, order], reference_logp[:, order])
    torch.testing.assert_close(found, build().exact(logp, reference_logp), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_clamped_equals_value_at_clamped_log_ratio(name: str):
    build, _ = DIVERGENCES[name]
    u = torch.linspace(-6, 6, 25, dtype=torch.float64)
    held, found = u.clamp(-1.5, 1.5), build().clamped(1.5)
    torch.testing.assert_close(found.value(u), build().value(held))
    torch.testing.assert_close(found.advantage(u), build().advantage(held))
