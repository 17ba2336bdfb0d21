"""What vLLM samples, against plain forwards of the learner, `generate`, exact distributions and itself."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from opd.data.batch import Prompt, Rollout, Sampling
from opd.errors import UserError
from opd.rollout.protocol import StudentSampler
from opd.rollout.vllm import VllmSampler
from tests.unit.rollout.families import PAD, PLAIN, STOPS, VOCAB, prompts
from tests.unit.rollout.test_sampler import reference_logp
from tests.vllm.models import build, long_prompts, scaled

SETTINGS = [(0.7, 0.9, 0), (1.0, 1.0, 4), (1.4, 0.7, 6), (0.5, 1.0, 0), (0.9, 0.5, 3)]


@pytest.fixture(scope="module")
def model():
    return build("qwen3")


@pytest.fixture(scope="module")
def sampler(model, start) -> VllmSampler:
    return start(model)


def gap(model, rollout: Rollout, sampling: Sampling) -> torch.Tensor:
    return (rollout.rollout_logp - reference_logp(model, rollout, sampling))[rollout.mask].abs()


def test_it_is_a_sampler(sampler: VllmSampler):
    assert isinstance(sampler, StudentSampler)


def test_logp_is_the_learners_own(model, sampler: VllmSampler):
    rollout = sampler.sample(prompts(40), PLAIN, key=(1,))
    assert 3 < rollout.mask.sum(1).float().mean() < 18, "responses of mixed length, or the test shows little"
    assert gap(model, rollout, PLAIN).max() < 1e-4
    assert sampler.drift < 1e-5


@pytest.mark.parametrize("family", ["qwen3-tied", "qwen2", "llama-biased"])
def test_logp_is_the_learners_own_in_other_families(family: str, start):
    other = build(family)
    rollout = start(other).sample(prompts(), PLAIN, key=(1,))
    assert gap(other, rollout, PLAIN).max() < 1e-4


@pytest.mark.parametrize("setting", SETTINGS)
def test_logp_of_truncated_distribution(model, sampler: VllmSampler, setting):
    sampling = Sampling(3, 20, *setting)
    assert gap(model, sampler.sample(prompts(), sampling, key=(1,)), sampling).max() < 1e-4


@pytest.mark.parametrize("setting", [(1.0, 1.0, 0), (0.8, 0.8, 0), (1.1, 0.9, 8)])
def test_tokens_follow_the_distribution(model, sampler: VllmSampler, setting):
    """χ² of the first token against its exact distribution. A right sampler fails one seed in 10⁴."""
    sampling, prompt = Sampling(4_000, 1, *setting), prompts()[0]
    rollout = sampler.sample([prompt], sampling, key=(4,))
    every = Rollout(
        prompt=rollout.prompt[:1].expand(VOCAB, -1),
        prompt_mask=rollout.prompt_mask[:1].expand(VOCAB, -1),
        tokens=torch.arange(VOCAB)[:, None],
        mask=torch.ones(VOCAB, 1, dtype=torch.bool),
        learned=torch.ones(VOCAB, 1, dtype=torch.bool),
        rollout_logp=torch.zeros(VOCAB, 1),
        group=torch.zeros(VOCAB, dtype=torch.long),
        truncated=torch.zeros(VOCAB, dtype=torch.bool),
    )
    expected = reference_logp(model, every, sampling)[:, 0].exp().double().numpy() * len(rollout)
    observed = np.bincount(rollout.tokens[:, 0].numpy(), minlength=VOCAB)
    assert observed[expected == 0].sum() == 0
    common = expected >= 5
    assert common.sum() > 2
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    enough = expected > 0
    expected *= observed.sum() / expected.sum()
    assert scipy.stats.chisquare(observed[enough], expected[enough]).pvalue > 1e-4


def test_logits_that_pad_the_vocabulary_have_no_part(start):
    """vLLM pads 13 tokens to 64. Of a uniform model, each real one has probability 1/13."""
    uniform = build("qwen3")
    torch.nn.init.zeros_(uniform.get_output_embeddings().weight)
    rollout = start(uniform).sample(prompts(20), replace(PLAIN, num_samples=20), key=(1,))
    assert set(rollout.tokens[rollout.mask].tolist()) == set(range(VOCAB))
    assert (rollout.rollout_logp[rollout.mask] + math.log(VOCAB)).abs().max() < 1e-5


def test_the_batch_changes_nothing(model, sampler: VllmSampler, start):
    """Few and many at a time, another order, other company: token for token the same."""
    given = prompts(24)
    whole = sampler.sample(given, PLAIN, key=(1,))
    few = start(model, max_num_seqs=3).sample(given, PLAIN, key=(1,))
    assert torch.equal(few.tokens, whole.tokens)
    torch.testing.assert_close(few.rollout_logp, whole.rollout_logp, rtol=0, atol=1e-5)
    some = sampler.sample(given[::-3], replace(PLAIN, num_samples=2), key=(1,))
    rows = [3 * index + sample for index in range(len(given))[::-3] for sample in range(2)]
    assert torch.equal(some.tokens, whole.tokens[rows, : some.tokens.shape[1]])
    assert torch.equal(some.truncated, whole.truncated[rows])


def test_key_decides(sampler: VllmSampler):
    first, again, other = (sampler.sample(prompts(), PLAIN, key=key) for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.rollout_logp, again.rollout_logp)
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)
    rows = {tuple(row) for row in sampler.sample([prompts()[0]] * 5, PLAIN, key=(1,)).tokens.tolist()}
    assert len(rows) > 10, "samples of one prompt, and of a prompt given twice, are drawn apart"


def test_a_new_engine_repeats_an_old_ones_rollouts_bit_for_bit(start):
    """As a resumed run does, whose engine has not sampled what the unbroken run's had in its cache."""
    model, given = build("qwen3-tied"), long_prompts()
    old = start(model)
    old.sample(given[::-1], PLAIN, key=(0,))
    expected, found = old.sample(given, PLAIN, key=(1,)), start(model).sample(given, PLAIN, key=(1,))
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.rollout_logp, expected.rollout_logp)


def test_layout(sampler: VllmSampler):
    rollout = sampler.sample(prompts(), PLAIN, key=(1,))
    lengths = rollout.mask.sum(1)
    assert rollout.group.tolist() == [index for index in range(7) for _ in range(3)]
    for row, index in enumerate(rollout.group.tolist()):
        assert tuple(rollout.prompt[row][rollout.prompt_mask[row]].tolist()) == prompts()[index].token_ids
    assert rollout.prompt_mask[:, -1].all(), "prompts are padded on the left"
    assert torch.equal(rollout.mask, torch.arange(rollout.tokens.shape[1]) < lengths[:, None]), "responses on the right"
    assert rollout.tokens.shape[1] == lengths.max()
    assert (rollout.tokens[~rollout.mask] == PAD).all()
    assert (rollout.rollout_logp[~rollout.mask] == 0).all()
    assert (rollout.rollout_logp[rollout.mask] < 0).all()


def test_response_includes_stop_token(sampler: VllmSampler):
    sampling = replace(PLAIN, num_samples=40)
    rollout = sampler.sample(prompts(), sampling, key=(1,))
    last = rollout.tokens.gather(1, rollout.mask.sum(1, keepdim=True) - 1)[:, 0]
    is_stop = torch.isin(rollout.tokens, torch.tensor(STOPS)) & rollout.mask
    assert torch.equal(is_stop.any(1), torch.isin(last, torch.tensor(STOPS)))
    assert is_stop.sum(1).max() == 1, "nothing follows a stop token"
    assert set(last.tolist()) >= set(STOPS), "both stop tokens occur"
    assert rollout.mask.sum(1).min() == 1, "some response stops at its first token"
    assert torch.equal(rollout.truncated, ~is_stop.any(1))
    assert 0 < rollout.truncated.sum() < len(rollout)
    assert (rollout.mask.sum(1)[rollout.truncated] == sampling.max_tokens).all()


def test_greedy_is_generate(model, sampler: VllmSampler):
    rollout = sampler.sample(prompts(), Sampling(1, 20, 0.0, 1.0, 0), key=(1,))
    assert (rollout.rollout_logp == 0).all()
    theirs = model.generate(
        rollout.prompt, attention_mask=rollout.prompt_mask.long(), do_sample=False, max_new_tokens=20,
        eos_token_id=list(STOPS), pad_token_id=PAD,
    )[:, rollout.prompt.shape[1] :]  # fmt: skip
    assert torch.equal(theirs, rollout.tokens)


def test_no_prompts_one_row_one_token(sampler: VllmSampler):
    nothing = sampler.sample([], PLAIN, key=(1,))
    assert len(nothing) == 0
    assert nothing.tokens.shape == nothing.mask.shape == nothing.rollout_logp.shape == (0, 0)
    one = sampler.sample(prompts(1), Sampling(1, 1, 1.0, 1.0, 0), key=(1,))
    assert one.tokens.shape == (1, 1)
    assert one.truncated.tolist() == [one.tokens.item() not in STOPS]
    short = sampler.sample(prompts(), replace(PLAIN, max_tokens=1), key=(1,))
    assert torch.equal(short.tokens, sampler.sample(prompts(), PLAIN, key=(1,)).tokens[:, :1])


def test_the_process_is_left_as_it_was(start):
    other, threads = build("qwen3"), torch.set_num_threads
    weights = [weight.clone() for weight in other.parameters()]
    state = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # pyright: ignore
    environment = {name: os.environ.get(name) for name in ("LD_PRELOAD", "LD_LIBRARY_PATH")}
    rollout = start(other).sample(prompts(), PLAIN, key=(1,))
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # pyright: ignore
    assert torch.set_num_threads is threads
    assert {name: os.environ.get(name) for name in environment} == environment
    assert all(torch.equal(before, after) for before, after in zip(weights, other.parameters(), strict=True))
    # The rollout can take part in a backward pass, and so can the weights.
    logits = other(rollout.tokens).logits
    (logits.log_softmax(-1).gather(-1, rollout.tokens[..., None])[..., 0] - rollout.rollout_logp).exp().sum().backward()
    assert all(weight.grad is not None for weight in other.parameters())


def test_what_cannot_be_sampled_is_said_in_one_sentence(sampler: VllmSampler):
    for sampling, said in (
        (replace(PLAIN, temperature=0.005), "temperature is 0.005; with rollout=vllm"),
        (replace(PLAIN, top_p=0.0), "top_p is 0.0"),
        (replace(PLAIN, num_samples=0), "out of range"),
        (replace(PLAIN, max_tokens=510), "more together than rollout.max_model_len, 512"),
    ):
        with pytest.raises(UserError, match=said):
            sampler.sample(prompts(), sampling, key=(1,))
    for ids, said in (((), "has no tokens"), ((VOCAB,), "outside the vocabulary")):
        with pytest.raises(UserError, match=said):
            sampler.sample([Prompt("p", "", "", "", ids)], PLAIN, key=(1,))


def test_weights_that_are_no_numbers_are_said(start):
    diverged = build("qwen3")
    ours = start(diverged, max_logp_drift=None)
    scaled(diverged, math.nan)
    ours.sync()
    with pytest.raises(UserError, match="gives vLLM a logit that is NaN or infinite at response token 0 of prompt p0"):
        ours.sample(prompts(), PLAIN, key=(1,))
