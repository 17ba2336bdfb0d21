"""Truncation against transformers' own warpers, the draw against its probabilities, and where randomness comes from."""

import hashlib

import numpy as np
import pytest
import scipy.stats
import torch

from opd.data.batch import Prompt, Sampling
from opd.model.policy import Policy
from opd.rollout.token_sampling import HEAD, LARGE, SORTED, sample_tokens, truncate, uniforms
from tests.unit.rollout.families import PLAIN, build, prompts, sampler, warp
from tests.unit.small import ALONE, root

SETTINGS = [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.0, 0.9, 0), (1.0, 1.0, 5), (0.7, 0.8, 0), (1.3, 0.6, 4), (1.0, 1e-6, 0)]


def sampling(temperature: float, top_p: float, top_k: int) -> Sampling:
    return Sampling(num_samples=1, max_tokens=1, temperature=temperature, top_p=top_p, top_k=top_k)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("vocab", [2, 13, SORTED, SORTED + 1, 500])
def test_truncate_matches_transformers(setting: tuple[float, float, int], vocab: int):
    generator = torch.Generator().manual_seed(vocab)
    # Peaked and flat rows, so that the nucleus of some lies within the first HEAD tokens and of others does not.
    spread = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.3, 0.01]).repeat(20)[:, None]
    logits = torch.randn(120, vocab, generator=generator, dtype=torch.float64) * spread
    ours = truncate(logits, sampling(*setting))
    theirs = warp(logits, sampling(*setting))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    if vocab == 500 and setting == (1.0, 0.9, 0):
        kept = (ours > -torch.inf).sum(1)
        assert kept.min() < HEAD < kept.max()


def test_truncation_keeps_ties():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert (truncate(logits, sampling(1.0, 1.0, 2)) > -torch.inf).tolist() == [[True, True, True, False]]
    assert (truncate(logits, sampling(1.0, 0.6, 0)) > -torch.inf).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("setting", SETTINGS)
def test_sampling_inverts_the_cdf(setting: tuple[float, float, int]):
    generator = torch.Generator().manual_seed(3)
    count = 20_000
    logits = torch.randn(1, 13, generator=generator, dtype=torch.float64)
    probability = warp(logits, sampling(*setting)).softmax(-1)[0]
    # Every stratum of [0, 1) once: the share of a token is its probability to within one stratum at either end.
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    token, logp = sample_tokens(logits, torch.zeros(count, dtype=torch.long), uniform, sampling(*setting))
    share = torch.bincount(token, minlength=13) / count
    assert (share - probability).abs().max() <= 1 / count
    torch.testing.assert_close(logp, probability.log()[token], rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rows_draw_from_their_own_branch(temperature: float):
    generator = torch.Generator().manual_seed(5)
    logits, branch = torch.randn(4, 30, generator=generator), torch.randint(0, 4, (50,), generator=generator)
    uniform, how = torch.rand(50, generator=generator), sampling(temperature, 0.9, 20)
    together = sample_tokens(logits, branch, uniform, how)
    separate = sample_tokens(logits[branch], torch.arange(50), uniform, how)
    assert torch.equal(together[0], separate[0])
    assert torch.equal(together[1], separate[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_at_ends_of_unit_interval(dtype: torch.dtype):
    largest = 1 - torch.finfo(dtype).eps / 2
    uniform = torch.tensor([0.0, largest], dtype=dtype)
    logits = torch.full((2, 200), -torch.inf, dtype=dtype)
    logits[:, 50:150] = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(dtype)
    token, logp = sample_tokens(logits, torch.arange(2), uniform, sampling(1.0, 1.0, 0))
    assert token.tolist() == [50, 149]
    assert logp.isfinite().all()


def test_greedy_takes_the_largest_and_says_0():
    token, logp = sample_tokens(
        torch.tensor([[0.0, 3.0, -1.0]]), torch.tensor([0, 0]), torch.tensor([0.99, 0.01]), sampling(0.0, 0.5, 1)
    )
    assert token.tolist() == [1, 1]
    assert logp.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_logits_show_in_logp(temperature: float, top_p: float, broken: float):
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    logits[1, 7] = broken
    logits[2] = -torch.inf
    token, logp = sample_tokens(logits, torch.arange(3), torch.full((3,), 0.5), sampling(temperature, top_p, 0))
    assert logp.isfinite().tolist() == [True, False, False]
    assert (token < 100).all()


def prompt(name: str) -> Prompt:
    return Prompt(id=name, problem="", answer="", domain="", token_ids=(1,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_depend_on_key_prompt_and_sample(dtype: torch.dtype):
    a, b, c = prompt("a"), prompt("b"), prompt("c")
    table = uniforms((7, 1), [a, b], 3, 50, dtype)
    assert table.dtype == dtype
    assert table.shape == (6, 50)
    assert torch.equal(uniforms((7, 1), [c, b, a], 2, 20, dtype)[[4, 5, 2, 3]], table[[0, 1, 3, 4], :20])
    assert len({tuple(row) for row in table.tolist()}) == 6
    assert not torch.equal(uniforms((7, 2), [a, b], 3, 50, dtype), table)
    again = uniforms((7, 1), [a, a], 3, 50, dtype)
    assert torch.equal(again[:3], table[:3])
    assert not torch.equal(again[3:], table[:3])


def test_uniforms_are_philox_streams():
    # The hash is spelt out: a run that resumes under another version repeats its numbers only while this holds.
    table = uniforms((3, 1), [prompt("a"), prompt("b")], 2, 5, torch.float64)
    name = hashlib.blake2b(b"((3, 1), 'b', 0, 1)", digest_size=16).digest()
    fresh = np.random.Generator(np.random.Philox(key=int.from_bytes(name, "little")))
    assert table[3].tolist() == fresh.random(5).tolist()


@pytest.mark.parametrize("axis", [0, 1])
def test_uniforms_are_uniform(axis: int):
    table = uniforms((5,), [prompt(str(index)) for index in range(500)], 2, 30, torch.float64).numpy()
    assert table.min() >= 0 and table.max() < 1
    assert scipy.stats.kstest(table.ravel(), "uniform").pvalue > 1e-3
    # Neighbours, of one row or of one prompt, are not related.
    first, second = (
        np.take(table, range(table.shape[axis] - 1), axis),
        np.take(table, range(1, table.shape[axis]), axis),
    )
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / np.sqrt(first.size)


# ---- large vocabularies


def tailed(vocab: int) -> torch.Tensor:
    """Log-probabilities of a few likely tokens and of 44,508 unlikely ones, 3e-4 together, among and behind them."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.zeros(vocab, dtype=torch.float64)
    likely = torch.randperm(vocab, generator=generator)[:300]
    tail = torch.randperm(vocab, generator=generator)[:44_508]
    weights[tail] = torch.rand(44_508, generator=generator, dtype=torch.float64) + 0.1
    weights *= 3e-4 / weights.sum()
    weights[likely] += torch.rand(300, generator=generator, dtype=torch.float64) / 150
    return weights.log().float()


def test_every_token_of_a_large_vocabulary_is_drawn_by_its_own_numbers():
    logits = tailed(152_064)[None]
    probability = logits.softmax(-1)[0]
    ends = np.cumsum(probability.numpy().astype(np.longdouble))
    ends /= ends[-1]
    possible = (probability > 0).nonzero()[:, 0]
    middle = (ends - (np.diff(ends, prepend=np.longdouble(0))) / 2)[possible.numpy()].astype(np.float64)
    drawn, logp = [], []
    for numbers in torch.from_numpy(middle).split(5_000):
        found = sample_tokens(logits, torch.zeros(len(numbers), dtype=torch.long), numbers, sampling(1.0, 1.0, 0))
        drawn.append(found[0])
        logp.append(found[1])
    assert torch.equal(torch.cat(drawn), possible)
    assert torch.equal(torch.cat(logp), probability[possible].log()) and logp[0].dtype == torch.float32
    # What the sums of float32 do with the same numbers: tokens that no number draws.
    coarse = sample_tokens(
        logits, torch.zeros(5_000, dtype=torch.long), torch.from_numpy(middle[-5_000:]).float(), sampling(1.0, 1.0, 0)
    )
    assert len(coarse[0].unique()) < 3_000


def test_the_ends_of_a_large_vocabulary_are_drawn():
    logits = torch.full((2, 40_001), -torch.inf)
    logits[:, 5:39_990] = torch.randn(39_985, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    token, logp = sample_tokens(logits, torch.arange(2), numbers, sampling(1.0, 1.0, 0))
    assert token.tolist() == [5, 39_989] and logp.isfinite().all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_logits_of_a_large_vocabulary_show_in_logp(broken: float):
    logits = torch.randn(3, 40_000, generator=torch.Generator().manual_seed(0))
    logits[1, 7], logits[2] = broken, -torch.inf
    half = torch.full((3,), 0.5, dtype=torch.float64)
    token, logp = sample_tokens(logits, torch.arange(3), half, sampling(1.0, 1.0, 0))
    assert logp.isfinite().tolist() == [True, False, False] and (token < 40_000).all()


def test_a_large_vocabularys_numbers_begin_with_those_of_a_small_one():
    given = ((7, 1), [prompt("a"), prompt("b")], 3, 40, torch.float32)
    small, large = uniforms(*given), uniforms(*given, vocab_size=152_064)
    assert small.dtype == torch.float32 and large.dtype == torch.float64
    rest = (large - small.double()) * 2**24
    assert rest.min() >= 0 and rest.max() < 1
    assert scipy.stats.kstest(rest.numpy().ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(rest.numpy().ravel(), small.numpy().ravel())[0, 1]) < 4 / np.sqrt(rest.numel())
    assert torch.equal(uniforms(*given, vocab_size=LARGE), small)
    assert torch.equal(uniforms(*given[:4], torch.float64, vocab_size=152_064), uniforms(*given[:4], torch.float64))


def test_a_model_of_a_large_vocabulary_is_sampled_as_it_is_scored():
    model = build("qwen3", vocab_size=40_000, initializer_range=0.3)
    rollout = sampler(model).sample(prompts(3), PLAIN, key=(1,))
    assert rollout.rollout_logp.dtype == torch.float32
    learner = Policy(root(model), ALONE, micro_batch_tokens=1000, logit_chunk=64, temperature=1.0)
    torch.testing.assert_close(learner.scores(rollout).logp, rollout.rollout_logp, rtol=0, atol=1e-4)
