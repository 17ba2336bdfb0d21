import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st

from opd.objective import divergence, support
from opd.objective.vocabulary import topk_divergence_
from tests.covering import covering

DIVERGENCES = [
    divergence.reverse_kl(),
    divergence.forward_kl(),
    divergence.jensen_shannon(),
    divergence.hellinger(),
    divergence.tsallis(alpha=1.5),
    divergence.skew_kl(alpha=0.2),
]
TAILS = ["renormalize", "bucket", "sampled", "drop"]
OF = ["teacher", "student", "union"]


def distributions(seed, vocabulary=7, rows=4):
    logits = torch.randn(2, rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    return logits[0].requires_grad_(), logits[1].log_softmax(-1)


def gradient(total, logits):
    return torch.autograd.grad(total.sum(), logits, retain_graph=True)[0]


@pytest.mark.parametrize(("d", "tail", "of"), covering(DIVERGENCES, TAILS, OF))
def test_the_whole_vocabulary_is_full(d, tail, of):
    logits, reference = distributions(0)
    logp = logits.log_softmax(-1)
    tokens = torch.tensor([0, 3, 6, 2])
    exact = support.full().exact(d, logp, reference)
    for k in (7, 100):
        found = support.topk(k=k, of=of, tail=tail).exact(d, logp, reference, tokens)
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(gradient(found, logits), gradient(exact, logits), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("d", DIVERGENCES)
@pytest.mark.parametrize("of", OF)
def test_sampled_tail_is_unbiased_by_enumeration(d, of):
    logits, reference = distributions(1)
    logp = logits.log_softmax(-1)
    value, grads = torch.zeros(4, dtype=torch.float64), torch.zeros_like(logits)
    for token in range(7):
        p = logp[:, token].detach().exp()
        found = support.topk(k=2, of=of, tail="sampled").exact(d, logp, reference, torch.full((4,), token))
        value += p * found.detach()
        grads += gradient(p * found, logits)
    exact = d.exact(logp, reference)
    torch.testing.assert_close(value, exact.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, gradient(exact, logits), rtol=1e-9, atol=1e-11)


def test_renormalised_by_hand():
    logp = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    reference = torch.tensor([[0.1, 0.3, 0.6]], dtype=torch.float64).log()
    found = support.topk(k=2, of="teacher", tail="renormalize").exact(divergence.reverse_kl(), logp, reference)
    p, q = [0.6, 0.4], [1 / 3, 2 / 3]
    assert found.item() == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def test_bucket_by_hand():
    logp = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    reference = torch.tensor([[0.1, 0.3, 0.6]], dtype=torch.float64).log()
    found = support.topk(k=1, of="student", tail="bucket").exact(divergence.reverse_kl(), logp, reference)
    assert found.item() == pytest.approx(0.5 * math.log(0.5 / 0.1) + 0.5 * math.log(0.5 / 0.9))


def test_dropped_tail():
    logp = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    reference = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    found = support.topk(k=2, of="teacher", tail="drop").exact(divergence.reverse_kl(), logp, reference)
    # Without the linear part the first token alone would give 0.2 log(0.2 / 0.6), below zero.
    assert found.item() == pytest.approx(0.2 * math.log(0.2 / 0.6) - (0.2 - 0.6))
    assert found.item() > 0


def test_union_counts_a_token_once():
    logp = torch.tensor([[0.5, 0.3, 0.1, 0.1]], dtype=torch.float64).log()
    reference = torch.tensor([[0.5, 0.05, 0.4, 0.05]], dtype=torch.float64).log()
    ids, valid, overlap = support.topk(k=2, of="union", tail="drop").choose(logp, reference)
    assert sorted(ids[valid].tolist()) == [0, 1, 2]
    assert overlap.tolist() == [0.5]


@pytest.mark.parametrize(("d", "tail", "of"), covering(DIVERGENCES, TAILS, OF))
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 200), k=st.integers(1, 6), token=st.integers(0, 6))
def test_student_equal_to_teacher_learns_nothing(d, tail, of, seed, k, token):
    logits, _ = distributions(seed, rows=1)
    logp = logits.log_softmax(-1)
    found = support.topk(k=k, of=of, tail=tail).exact(d, logp, logp.detach(), torch.tensor([token]))
    assert found.abs().max() < 1e-14
    assert gradient(found, logits).abs().max() < 1e-14


@pytest.mark.parametrize("tail", ["renormalize", "bucket", "drop"])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 200), k=st.integers(1, 7))
def test_topk_divergence_is_nonnegative(tail, seed, k):
    logits, reference = distributions(seed)
    for scale in (1.0, 40.0):
        found = partial(support.topk(k=k, of="teacher", tail=tail).exact, divergence.reverse_kl())
        logp = (logits * scale).log_softmax(-1)
        total = found(logp, (reference * scale).log_softmax(-1))
        assert (total > -1e-10).all()
        assert torch.isfinite(gradient(total, logits)).all()


def test_sampled_tail_needs_tokens():
    logits, reference = distributions(0)
    with pytest.raises(ValueError, match="needs the sampled tokens"):
        support.topk(k=2, of="teacher", tail="sampled").exact(
            divergence.reverse_kl(), logits.log_softmax(-1), reference
        )


@pytest.mark.parametrize("of", ["teacher", "student", "union"])
def test_clamped_mass_counts_shared_tokens_once(of: str):
    generator = torch.Generator().manual_seed(0)
    student, reference = torch.randn(2, 20, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    chosen = support.topk(k=4, of=of, tail="bucket")  # pyright: ignore[reportArgumentType]
    sets = {"student": student.topk(4).indices, "teacher": reference.topk(4).indices}
    inside = torch.zeros(20, 9, dtype=torch.bool)
    for ids in sets.values() if of == "union" else [sets[of]]:
        inside.scatter_(-1, ids, True)
    expected = (student.exp() * (inside & ((student - reference).abs() > 0.5))).sum(-1)
    given = student.clone(), reference.clone(), divergence.reverse_kl(), chosen, None
    found = topk_divergence_(*given, backward=False, clamp=0.5)
    torch.testing.assert_close(found["clamped"], expected)
