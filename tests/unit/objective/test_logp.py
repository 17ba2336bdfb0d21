import pytest
import torch

from opd.objective.logp import backward_token_scores, even, token_scores

WIDTH, VOCABULARY = 6, 23


def problem(num, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    head = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    tokens = torch.randint(VOCABULARY, (num,), generator=generator)
    grad_logp, grad_entropy = torch.randn(2, num, generator=generator, dtype=torch.float64)
    return hidden, head, tokens, grad_logp, grad_entropy


def plain(hidden, head, tokens, temperature):
    log_p = (hidden @ head.T / temperature).log_softmax(-1)
    return log_p.gather(-1, tokens[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("num", [0, 1, 2, 13])
@pytest.mark.parametrize("chunk_size", [1, 3, 5, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_and_gradients_equal_autograd(num, chunk_size, temperature):
    hidden, head, tokens, grad_logp, grad_entropy = problem(num)
    knobs = {"temperature": temperature, "chunk_size": chunk_size}
    logp, entropy = plain(hidden.requires_grad_(), head.requires_grad_(), tokens, temperature)
    found_logp, found_entropy = token_scores(hidden, head, tokens, **knobs)
    torch.testing.assert_close(found_logp, logp, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found_entropy, entropy, rtol=1e-12, atol=1e-13)
    for with_entropy in (None, grad_entropy):
        loss = (grad_logp * logp).sum() + (0 if with_entropy is None else (with_entropy * entropy).sum())
        expected = torch.autograd.grad(loss, [hidden, head], retain_graph=True)
        found = backward_token_scores(hidden, head, tokens, grad_logp, with_entropy, **knobs)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_low_precision_accumulates_in_float32():
    hidden, head, tokens, grad_logp, grad_entropy = problem(9, torch.bfloat16)
    knobs = {"temperature": 1.0, "chunk_size": 4}
    wide = hidden.double().requires_grad_(), head.double().requires_grad_()
    logp, entropy = plain(*wide, tokens, 1.0)
    found_logp, found_entropy = token_scores(hidden, head, tokens, **knobs)
    assert found_logp.dtype == found_entropy.dtype == torch.float32
    torch.testing.assert_close(found_logp.double(), logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_entropy.double(), entropy, rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad((grad_logp * logp + grad_entropy * entropy).sum(), wide)
    found = backward_token_scores(hidden, head, tokens, grad_logp.float(), grad_entropy.float(), **knobs)
    assert found[0].dtype == torch.bfloat16
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_low_precision_has_the_temperature_too(temperature):
    hidden, head, tokens, grad_logp, grad_entropy = problem(9, torch.bfloat16)
    knobs = {"temperature": temperature, "chunk_size": 4}
    same = hidden.float(), head.float()
    torch.testing.assert_close(token_scores(hidden, head, tokens, **knobs), token_scores(*same, tokens, **knobs))
    for grads in ((grad_logp.float(), None), (grad_logp.float(), grad_entropy.float())):
        found = backward_token_scores(hidden, head, tokens, *grads, **knobs)
        expected = backward_token_scores(*same, tokens, *grads, **knobs)
        torch.testing.assert_close(found[0].float(), expected[0], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)


def test_large_vocabulary():
    generator = torch.Generator().manual_seed(4)
    hidden, head = torch.randn(3, 4, generator=generator), torch.randn(40_000, 4, generator=generator)
    tokens, grad = torch.tensor([0, 39_999, 17_000]), torch.ones(3)
    knobs = {"temperature": 1.0, "chunk_size": 2}
    low = hidden.bfloat16(), head.bfloat16()
    same = low[0].float(), low[1].float()
    pairs = [
        (token_scores(*low, tokens, **knobs), token_scores(*same, tokens, **knobs)),
        (
            backward_token_scores(*low, tokens, grad, None, **knobs),
            backward_token_scores(*same, tokens, grad, None, **knobs),
        ),
    ]
    for found, expected in pairs:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=1e-2, atol=1e-5)


def test_impossible_tokens_give_finite_scores():
    hidden = torch.tensor([[1.0], [1.0]])
    head = torch.tensor([[0.0], [1.0], [-torch.inf]])
    tokens = torch.tensor([0, 1])
    logp, entropy = token_scores(hidden, head, tokens, temperature=1.0, chunk_size=2)
    expected = torch.tensor([0.0, 1.0]).log_softmax(-1)
    torch.testing.assert_close(logp, expected)
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum().expand(2))


def test_no_gradient_without_grad():
    hidden, head, tokens, _, _ = problem(5, torch.float32)
    for found in backward_token_scores(hidden, head, tokens, torch.zeros(5), None, temperature=1.0, chunk_size=2):
        assert (found == 0).all()


@pytest.mark.parametrize(("num", "chunk_size", "size"), [(0, 4, 1), (1, 4, 1), (4, 4, 4), (5, 4, 3), (257, 256, 129)])
def test_chunks_are_even(num, chunk_size, size):
    assert even(num, chunk_size) == size
