"""Heads with a bias, a scale and a cap: log-probs, divergences and gradients against autograd of whole logits."""

from functools import partial

import pytest
import torch

from opd.objective import divergence, fused, support
from opd.objective.head import Head
from opd.objective.logp import backward_token_scores, token_scores
from tests.covering import covering

NUM, WIDTH, VOCABULARY = 11, 5, 29
FORMS = {
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "cap": {"cap": 4.0},
    "tight cap": {"cap": 0.5},
    "all": {"bias": True, "scale": 2.5, "cap": 3.0},
}
SUPPORTS = {
    "full": None,
    "topk bucket": support.topk(k=4, of="union", tail="bucket"),
    "topk sampled": support.topk(k=4, of="student", tail="sampled"),
}


def head_of(form: str, seed: int) -> Head:
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    settings = dict(FORMS[form])
    bias = draw(VOCABULARY).requires_grad_() if settings.pop("bias", False) else None
    return Head((1.5 * draw(VOCABULARY, WIDTH)).requires_grad_(), bias, **settings)


def logits(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    """As the families write it."""
    products = hidden @ head.weight.T
    if head.bias is not None:
        products = products + head.bias
    products = products * head.scale
    return products if head.cap is None else head.cap * torch.tanh(products / head.cap)


def given(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(NUM, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    return hidden, torch.randint(VOCABULARY, (NUM,), generator=generator)


def learned(hidden: torch.Tensor, head: Head) -> list[torch.Tensor]:
    return [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]


@pytest.mark.parametrize(
    ("form", "temperature", "entropy", "chunk"), covering(FORMS, [1.0, 0.7], [True, False], [3, 99])
)
def test_scores_and_their_gradients_are_autograds(form: str, temperature: float, entropy: bool, chunk: int):
    (hidden, tokens), head = given(0), head_of(form, 1)
    log_p = (logits(hidden, head) / temperature).log_softmax(-1)
    expected = log_p.gather(-1, tokens[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    knobs = {"temperature": temperature, "chunk_size": chunk}
    torch.testing.assert_close(token_scores(hidden, head, tokens, **knobs), expected, rtol=1e-11, atol=1e-12)
    by_logp, by_entropy = torch.randn(2, NUM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    loss = (by_logp * expected[0]).sum() + ((by_entropy * expected[1]).sum() if entropy else 0)
    wanted = torch.autograd.grad(loss, learned(hidden, head))
    found = backward_token_scores(hidden, head, tokens, by_logp, by_entropy if entropy else None, **knobs)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("form", "teacher", "where", "temperature", "entropy"),
    covering(FORMS, FORMS, SUPPORTS, [1.0, 0.6], [True, False]),
)
def test_divergences_and_their_gradients_are_autograds(
    form: str, teacher: str, where: str, temperature: float, entropy: bool
):
    (hidden, tokens), head, hidden_teacher, head_teacher = given(0), head_of(form, 1), given(3)[0], head_of(teacher, 4)
    generator = torch.Generator().manual_seed(5)
    weight, entropy_weight = torch.rand(2, NUM, dtype=torch.float64, generator=generator)
    log_p = (logits(hidden, head) / temperature).log_softmax(-1)
    log_q = (logits(hidden_teacher, head_teacher) / temperature).log_softmax(-1).detach()
    d = divergence.jeffreys()
    measured = (SUPPORTS[where] or support.full()).exact(d, log_p, log_q, tokens=tokens)
    expected = (weight * measured).sum()
    if entropy:
        expected = expected + (entropy_weight * (log_p.exp() * log_p).sum(-1)).sum()
    found = fused.measure(
        hidden,
        head,
        hidden_teacher,
        head_teacher,
        d,
        weight=weight,
        entropy_weight=entropy_weight if entropy else None,
        support=SUPPORTS[where],
        tokens=tokens,
        temperature=temperature,
        chunk_size=4,
    )
    torch.testing.assert_close(found.divergence, measured.detach(), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=1e-11)
    wanted = torch.autograd.grad(expected, learned(hidden, head))
    torch.testing.assert_close(torch.autograd.grad(found.loss, learned(hidden, head)), wanted, rtol=1e-9, atol=1e-10)


def test_a_capped_gradient_in_float32_is_as_exact_as_an_uncapped_one():
    (hidden, tokens), head = given(0), head_of("all", 1)
    grad = torch.ones(NUM, dtype=torch.float64)
    knobs = {"temperature": 1.0, "chunk_size": 4}
    exact = backward_token_scores(hidden, head, tokens, grad, None, **knobs)
    found = backward_token_scores(hidden.float(), head.map(torch.Tensor.float), tokens, grad.float(), None, **knobs)
    torch.testing.assert_close([each.double() for each in found], list(exact), rtol=1e-4, atol=1e-5)
