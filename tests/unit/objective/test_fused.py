import math
from functools import partial

import pytest
import torch

from opd.objective import divergence, fused, support
from opd.objective.ensemble import advantage_mean, arithmetic, geometric, single, soft_switch
from opd.objective.mixture import Mixture
from tests.covering import covering

VOCABULARY, WIDTH, TEACHER_WIDTHS = 29, 5, (4, 7, 6)
DIVERGENCES = {
    "reverse_kl": divergence.reverse_kl,
    "forward_kl": divergence.forward_kl,
    "jeffreys": divergence.jeffreys,
    "jensen_shannon": divergence.jensen_shannon,
    "generalized_jensen_shannon": partial(divergence.generalized_jensen_shannon, beta=0.1),
    "hellinger": divergence.hellinger,
    "tsallis": partial(divergence.tsallis, alpha=1.5),
    "alpha_divergence": partial(divergence.alpha_divergence, alpha=0.3),
    "skew_kl": partial(divergence.skew_kl, alpha=0.1),
    "skew_forward_kl": partial(divergence.skew_forward_kl, alpha=0.1),
    "total_variation": divergence.total_variation,
}
MIXTURES = {
    "single": (1, partial(single.mixture, 1, 0.0)),
    "arithmetic": (3, partial(arithmetic.mixture, 3, 0.0, weights=[0.5, 0.2, 0.3])),
    "geometric": (3, partial(geometric.mixture, 3, 0.0, weights=[0.5, 0.2, 0.3], normalize=True)),
    "product": (3, partial(geometric.mixture, 3, 0.0, weights=[0.5, 0.2, 0.3], normalize=False)),
    "advantage_mean": (3, partial(advantage_mean.mixture, 3, 0.0, weights=[0.5, 0.2, 0.3])),
    "soft_switch": (3, partial(soft_switch.mixture, 3, 0.3)),
}
SUPPORTS = {
    "full": None,
    "topk renormalize": support.topk(k=4, of="teacher", tail="renormalize"),
    "topk bucket": support.topk(k=4, of="union", tail="bucket"),
    "topk sampled": support.topk(k=4, of="student", tail="sampled"),
    "topk drop": support.topk(k=4, of="teacher", tail="drop"),
}


def problem(num, seed=0, dtype=torch.float64, teachers=1):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    hidden, head = draw(num, WIDTH).requires_grad_(), draw(VOCABULARY, WIDTH).requires_grad_()
    hiddens = [draw(num, width) for width in TEACHER_WIDTHS[:teachers]]
    heads = [draw(VOCABULARY, width) for width in TEACHER_WIDTHS[:teachers]]
    weight = torch.rand(num, generator=generator, dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, (num,), generator=generator)
    return hidden, head, hiddens, heads, weight, tokens


def naive(hidden, head, hiddens, heads, d, mixture, where, tokens, temperature=1.0):
    """D of each token from whole distributions, by autograd."""
    logp = (hidden @ head.T / temperature).log_softmax(-1)
    teachers = torch.stack([(h @ w.T / temperature).log_softmax(-1) for h, w in zip(hiddens, heads, strict=True)])
    measure = partial((where or support.full()).exact, d, logp, tokens=tokens)
    if mixture.space == "advantage":
        return sum(w * measure(reference_logp=t) for w, t in zip(mixture.weights, teachers, strict=True))
    return measure(reference_logp=mixture.reference(teachers))


def compare(d, mixture, where, teachers, num=11, seed=0, temperature=1.0, chunk_size=4):
    hidden, head, hiddens, heads, weight, tokens = problem(num, seed, teachers=teachers)
    per_token = naive(hidden, head, hiddens, heads, d, mixture, where, tokens, temperature)
    expected = torch.autograd.grad((weight * per_token).sum(), [hidden, head])
    loss, found = fused.exact(
        hidden, head, hiddens, heads, d,
        weight=weight, temperature=temperature, mixture=mixture, support=where, tokens=tokens, chunk_size=chunk_size,
    )  # fmt: skip
    torch.testing.assert_close(found, per_token.detach(), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(loss, (weight * per_token).sum(), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(torch.autograd.grad(loss, [hidden, head]), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "mixture", "where"), covering(DIVERGENCES, MIXTURES, SUPPORTS))
def test_fused_equals_naive(name, mixture, where):
    teachers, build = MIXTURES[mixture]
    compare(DIVERGENCES[name](), build(), SUPPORTS[where], teachers)


@pytest.mark.parametrize(("num", "chunk_size", "temperature"), covering([1, 2, 13], [1, 3, 13, 1000], [1, 0.6]))
def test_sizes_chunks_and_temperatures(num, chunk_size, temperature):
    for where in SUPPORTS.values():
        compare(divergence.jeffreys(), MIXTURES["single"][1](), where, 1, num, 3, temperature, chunk_size)


def test_blocks_smaller_than_a_chunk(monkeypatch):
    monkeypatch.setattr("opd.objective.logp.BLOCK", 2 * VOCABULARY)
    for where in SUPPORTS.values():
        compare(divergence.hellinger(), MIXTURES["arithmetic"][1](), where, 3, num=11, chunk_size=5)


def test_no_tokens_at_all():
    hidden, head, hiddens, heads, weight, _ = problem(0)
    loss, found = fused.exact(hidden, head, hiddens[0], heads[0], divergence.reverse_kl(), weight=weight)
    assert loss.item() == 0
    assert found.shape == (0,)
    grads = torch.autograd.grad(loss, [hidden, head])
    assert grads[0].shape == (0, WIDTH)
    assert (grads[1] == 0).all()


@pytest.mark.parametrize(("name", "where", "dtype"), covering(DIVERGENCES, SUPPORTS, [torch.float32, torch.float64]))
def test_zero_gradient_for_student_equal_to_teacher(name, where, dtype):
    hidden, head, *_, tokens = problem(9, dtype=dtype)
    loss, found = fused.exact(
        hidden, head, hidden.detach(), head.detach(), DIVERGENCES[name](),
        support=SUPPORTS[where], tokens=tokens, temperature=0.8, chunk_size=4,
    )  # fmt: skip
    tolerance = 0 if where == "full" else 1e-14
    assert loss.abs() <= tolerance
    assert found.abs().max() <= tolerance
    for gradient in torch.autograd.grad(loss, [hidden, head]):
        assert gradient.abs().max() <= tolerance * 100


def test_per_token_weights_and_unused_teacher():
    hidden, head, hiddens, heads, weight, tokens = problem(6, teachers=3)
    choice = torch.tensor([0, 2, 2, 0, 2, 0])
    mixture = Mixture(torch.nn.functional.one_hot(choice, 3).T.double(), "probability")
    hiddens[1] = torch.full_like(hiddens[1], math.nan)
    hiddens[0][choice != 0] = math.nan
    hiddens[2][choice != 2] = math.nan
    for space in ("probability", "log", "log_normalized", "advantage"):
        mixture = Mixture(mixture.weights, space)
        loss, found = fused.exact(
            hidden, head, hiddens, heads, divergence.forward_kl(), weight=weight, mixture=mixture, chunk_size=4
        )
        expected = torch.stack([
            fused.exact(hidden[i : i + 1], head, hiddens[c][i : i + 1], heads[c], divergence.forward_kl())[1][0]
            for i, c in enumerate(choice.tolist())
        ])  # fmt: skip
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(loss, (weight * expected).sum())
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, [hidden, head]))
    assert tokens.shape == (6,)


def test_statistics_in_the_same_pass():
    hidden, head, hiddens, heads, _, tokens = problem(7, teachers=3)
    mixture = MIXTURES["arithmetic"][1]()
    found = fused.measure(
        hidden, head, hiddens, heads, divergence.hellinger(),
        mixture=mixture, tokens=tokens, with_statistics=True, chunk_size=3,
    )  # fmt: skip
    logp = (hidden @ head.T).log_softmax(-1).detach()
    reference = mixture.reference(torch.stack([(h @ w.T).log_softmax(-1) for h, w in zip(hiddens, heads, strict=True)]))
    at = lambda x: x.gather(-1, tokens[:, None])[:, 0]  # noqa: E731
    torch.testing.assert_close(found.student_logp, at(logp))
    torch.testing.assert_close(found.reference_logp, at(reference))
    torch.testing.assert_close(found.student_entropy, -(logp.exp() * logp).sum(-1))
    torch.testing.assert_close(found.reference_entropy, -(reference.exp() * reference).sum(-1))
    torch.testing.assert_close(found.reverse_kl, divergence.reverse_kl().exact(logp, reference))
    assert found.overlap.isnan().all()
    assert not found.student_logp.requires_grad


def test_mass_and_overlap_of_the_top_k():
    hidden, head, hiddens, heads, _, _ = problem(7)
    where = support.topk(k=4, of="teacher", tail="drop")
    found = fused.measure(hidden, head, hiddens, heads, divergence.reverse_kl(), support=where, chunk_size=3)
    logp, reference = (hidden @ head.T).log_softmax(-1).detach(), (hiddens[0] @ heads[0].T).log_softmax(-1)
    top = reference.topk(4).indices
    torch.testing.assert_close(found.student_mass, logp.gather(-1, top).exp().sum(-1))
    torch.testing.assert_close(found.reference_mass, reference.gather(-1, top).exp().sum(-1))
    mine = logp.topk(4).indices
    shared = [len(set(a) & set(b)) / 4 for a, b in zip(top.tolist(), mine.tolist(), strict=True)]
    assert found.overlap.tolist() == shared


def test_entropy_bonus_acts_in_the_same_pass():
    hidden, head, hiddens, heads, weight, _ = problem(7)
    bonus = weight.flip(0)
    d = divergence.reverse_kl()
    found = fused.measure(
        hidden, head, hiddens, heads, d, weight=weight, entropy_weight=bonus, temperature=0.7, chunk_size=3
    )
    logp = (hidden @ head.T / 0.7).log_softmax(-1)
    expected = (weight * d.exact(logp, (hiddens[0] @ heads[0].T / 0.7).log_softmax(-1))).sum()
    expected = expected + (bonus * (logp.exp() * logp).sum(-1)).sum()
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.loss, [hidden, head]), torch.autograd.grad(expected, [hidden, head])
    )


def test_clamp_matches_sampled_tokens():
    hidden, head, hiddens, heads, _, _ = problem(7)
    d, c = divergence.forward_kl(), 0.8
    found = fused.measure(hidden, head, hiddens, heads, d, clamp=c, chunk_size=3)
    logits = hidden @ head.T
    logp, reference = logits.log_softmax(-1), (hiddens[0] @ heads[0].T).log_softmax(-1)
    u = (logp - reference).detach()
    p = logp.detach().exp()
    torch.testing.assert_close(found.divergence, (p * d.value(u.clamp(-c, c))).sum(-1))
    torch.testing.assert_close(found.clamped, (p * (u.abs() > c)).sum(-1))
    policy_gradient = -(p * d.advantage(u.clamp(-c, c)) * logp).sum()
    torch.testing.assert_close(
        torch.autograd.grad(found.loss, [hidden, head]), torch.autograd.grad(policy_gradient, [hidden, head])
    )


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("where", ["full", "topk renormalize", "topk sampled"])
def test_low_precision_accumulates_in_float32(name, where):
    hidden, head, hiddens, heads, weight, tokens = problem(40, dtype=torch.bfloat16, teachers=3)
    wide = [x.detach().double() for x in (hidden, head)]
    d, mixture = DIVERGENCES[name](), MIXTURES["arithmetic"][1]()
    leaves = [x.requires_grad_() for x in wide]
    wide_teachers = [h.double() for h in hiddens], [w.double() for w in heads]
    expected = naive(*leaves, *wide_teachers, d, mixture, SUPPORTS[where], tokens)
    loss, found = fused.exact(
        hidden, head, hiddens, heads, d,
        weight=weight.float(), mixture=mixture, support=SUPPORTS[where], tokens=tokens, chunk_size=16,
    )  # fmt: skip
    assert found.dtype == torch.float32
    relative = (found.double() - expected.detach()).norm() / expected.detach().norm()
    assert relative < 1e-4
    pairs = zip(
        torch.autograd.grad(loss, [hidden, head]),
        torch.autograd.grad((weight * expected).sum(), leaves),
        strict=True,
    )
    for one, other in pairs:
        assert (one.double() - other).norm() / other.norm() < 1e-2


@pytest.mark.parametrize(("name", "where", "dtype"), covering(DIVERGENCES, SUPPORTS, [torch.float32, torch.float64]))
def test_no_nan_for_nearly_disjoint_distributions(name, where, dtype):
    """Log-ratios to ±100 and beyond, where one side's probability is 0 in float32."""
    head = torch.eye(3, dtype=dtype)
    hidden = torch.tensor([[0.0, -100.0, -3.0], [0.0, 0.0, -300.0], [50.0, -50.0, 0.0]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[-100.0, 0.0, -3.0], [0.0, -300.0, 0.0], [-50.0, 50.0, 0.0]], dtype=dtype)
    d, tokens = DIVERGENCES[name](), torch.tensor([0, 1, 0])
    where_ = SUPPORTS[where] and support.topk(k=2, of=SUPPORTS[where].of, tail=SUPPORTS[where].tail)
    loss, found = fused.exact(hidden, head, teacher, head, d, support=where_, tokens=tokens)
    assert torch.isfinite(found).all()
    assert torch.isfinite(torch.autograd.grad(loss, hidden)[0]).all()
    if where == "full" and name in ("forward_kl", "jensen_shannon", "hellinger", "total_variation"):
        plain = d.exact(hidden.detach().double().log_softmax(-1), teacher.double().log_softmax(-1))
        bounded = found[:1].double() if name == "forward_kl" else found.double()
        torch.testing.assert_close(bounded, plain[: len(bounded)], rtol=0.25, atol=1e-6)


def test_upstream_gradient_scales():
    hidden, head, hiddens, heads, weight, _ = problem(5)
    run = partial(fused.exact, hidden, head, hiddens, heads, divergence.hellinger(), weight=weight)
    plain = torch.autograd.grad(run()[0], [hidden, head])
    scaled = torch.autograd.grad(-3 * run()[0], [hidden, head])
    torch.testing.assert_close([-3 * g for g in plain], list(scaled))


def test_without_gradient_none_is_made():
    hidden, head, hiddens, heads, _, _ = problem(5)
    with torch.no_grad():
        loss, found = fused.exact(hidden, head, hiddens, heads, divergence.hellinger())
    assert not loss.requires_grad
    assert found.shape == (5,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": [torch.zeros(VOCABULARY + 1, 4).double()]}, "share a vocabulary: 29 tokens against 30"),
        ({"d": divergence.k3_naive()}, "no exact form"),
        ({"support": support.sampled()}, "policy gradient"),
        ({"teachers": 2}, "several teachers a mixture"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    hidden, head, hiddens, heads, _, _ = problem(3, teachers=change.get("teachers", 1))
    d = change.get("d", divergence.reverse_kl())
    with pytest.raises(ValueError, match=message):
        fused.exact(hidden, head, hiddens, change.get("heads", heads), d, support=change.get("support"))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_expected_advantage_is_fused_gradient(name, mixture):
    """By enumeration: every token of the vocabulary, weighed by the student's probability of it."""
    teachers, build = MIXTURES[mixture]
    d, mixed = DIVERGENCES[name](), build()
    hidden, head, hiddens, heads, *_ = problem(5, seed=7, teachers=teachers)
    logp = (hidden @ head.T).log_softmax(-1)
    teacher_logp = torch.stack([(h @ w.T).log_softmax(-1) for h, w in zip(hiddens, heads, strict=True)])
    advantage = mixed.advantage(d.advantage, logp.detach(), teacher_logp)
    policy_gradient = -(logp.detach().exp() * advantage * logp).sum()
    loss, _ = fused.exact(hidden, head, hiddens, heads, d, mixture=mixed, chunk_size=2)
    torch.testing.assert_close(
        torch.autograd.grad(loss, [hidden, head]),
        torch.autograd.grad(policy_gradient, [hidden, head]),
        rtol=1e-10,
        atol=1e-11,
    )
