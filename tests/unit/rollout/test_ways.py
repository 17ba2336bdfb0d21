"""Every kind of state is sampled rightly, by the fastest way that is right for it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel

from opd.data.batch import Prompt, Sampling
from opd.errors import UserError
from opd.rollout import ways
from opd.rollout.continuous import ContinuousBatch
from opd.rollout.generation import Generation
from tests.unit.rollout import families, kinds
from tests.unit.rollout.families import PAD, PLAIN, STOPS, prompts, sampler
from tests.unit.rollout.kinds import BATCH, KINDS, NO_CACHE, STATE
from tests.unit.rollout.test_sampler import reference_logp

SHORT = replace(PLAIN, num_samples=2, max_tokens=12)


def way_of(model: PreTrainedModel) -> str:
    batch = sampler(model).way.batch
    if batch.func is ContinuousBatch:
        return BATCH
    return STATE if batch.keywords["cached"] else NO_CACHE


@pytest.mark.parametrize("kind", KINDS)
def test_logp_is_the_learners_own_whatever_the_batch(kind: str):
    model = kinds.build(kind)
    assert way_of(model) == KINDS[kind][0]
    whole = sampler(model).sample(prompts(), SHORT, key=(1,))
    assert whole.mask.sum(1).unique().numel() > 2, "responses of mixed length, or the test shows little"
    torch.testing.assert_close(whole.rollout_logp, reference_logp(model, whole, SHORT), rtol=0, atol=1e-4)
    part = sampler(model, max_batch_tokens=45).sample(prompts()[2:], SHORT, key=(1,))
    assert torch.equal(part.tokens, whole.tokens[4:, : part.tokens.shape[1]])
    torch.testing.assert_close(part.rollout_logp, whole.rollout_logp[4:, : part.tokens.shape[1]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("setting", [(1.0, 1.0, 0), (0.8, 0.7, 5), (0.0, 1.0, 0)])
def test_ways_agree(monkeypatch: pytest.MonkeyPatch, setting: tuple[float, float, int], cached: bool):
    families.double_norms(monkeypatch)
    model = families.build("qwen3", torch.float64)
    sampling = Sampling(3, 20, *setting)
    ours = sampler(model)
    expected = ours.sample(prompts(), sampling, key=(1,))
    ours.way = ways.Way(partial(Generation, cached=cached))
    for ours.max_batch_tokens in (10_000, 90, 29):
        found = ours.sample(prompts(), sampling, key=(1,))
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.truncated, expected.truncated)
        torch.testing.assert_close(found.rollout_logp, expected.rollout_logp, rtol=0, atol=1e-10)


def test_the_checkpoints_own_settings_are_not_followed():
    model = kinds.build("convolutions")
    expected = sampler(model).sample(prompts(), SHORT, key=(1,))
    for setting in (
        {"repetition_penalty": 5.0, "min_new_tokens": 9, "suppress_tokens": [3, 4, 5, 6], "do_sample": True},
        {"forced_eos_token_id": 1, "num_beams": 3, "max_length": 2, "use_cache": False, "pad_token_id": 7},
    ):
        model.generation_config.update(**setting)  # pyright: ignore
        before = model.generation_config.to_dict()  # pyright: ignore
        found = sampler(model).sample(prompts(), SHORT, key=(1,))
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.rollout_logp, expected.rollout_logp)
        assert model.generation_config.to_dict() == before  # pyright: ignore


def test_ends_of_responses():
    """A prompt may hold a stop token or padding; a response may have one token, and there may be none."""
    ours = sampler(kinds.build("convolutions"))
    nothing = ours.sample([], SHORT, key=(1,))
    assert nothing.tokens.shape == nothing.rollout_logp.shape == (0, 0)
    given = [Prompt("a", "", "", "", (3, 1, PAD, 2)), Prompt("b", "", "", "", (PAD,)), Prompt("c", "", "", "", (1, 1))]
    many = replace(SHORT, num_samples=20)
    rollout = ours.sample(given, many, key=(1,))
    last = rollout.tokens.gather(1, rollout.mask.sum(1, keepdim=True) - 1)[:, 0]
    stop = torch.isin(rollout.tokens, torch.tensor(STOPS)) & rollout.mask
    assert torch.equal(stop.any(1), torch.isin(last, torch.tensor(STOPS)))
    assert stop.sum(1).max() == rollout.mask.sum(1).min() == 1
    assert torch.equal(rollout.truncated, ~stop.any(1))
    assert rollout.truncated.any()
    one = ours.sample(given, replace(many, max_tokens=1), key=(1,))
    assert torch.equal(one.tokens, rollout.tokens[:, :1])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_copies_at_another_precision(dtype: str):
    model = kinds.build("convolutions")
    ours = sampler(model, dtype)
    rollout = ours.sample(prompts(), SHORT, key=(1,))
    gap = (rollout.rollout_logp - reference_logp(model, rollout, SHORT))[rollout.mask].abs()
    assert 1e-4 < gap.mean() < 0.3
    own = reference_logp(ours.model, rollout, SHORT)
    torch.testing.assert_close(rollout.rollout_logp, own, rtol=0, atol=1e-4 if dtype == "int8" else 0.3)


@pytest.mark.parametrize("position", [0, 1])
def test_broken_weights_are_refused(position: int):
    model = kinds.build("convolutions")
    with torch.no_grad():
        (model.lm_head if position == 0 else model.get_input_embeddings()).weight[3:6] = torch.nan  # pyright: ignore
    with pytest.raises(UserError, match=r"NaN or infinite.*response token \d+ of prompt p\d"):
        sampler(model).sample(prompts(), SHORT, key=(1,))


def test_what_is_slow_is_said(capsys: pytest.CaptureFixture[str]):
    for kind, said in {"plain": "", "convolutions": "the slower way", "RWKV": "without a cache"}.items():
        sampler(kinds.build(kind))
        assert said in (out := capsys.readouterr().out)
        assert bool(out) == bool(said)
        assert not said or "rollout=vllm" in out


def test_what_no_way_samples_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = kinds.build("convolutions")
    forward, calls = model.forward, iter(range(10**6))

    def other(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * (1 + 0.01 * next(calls))
        return output

    monkeypatch.setattr(model, "forward", other)
    with pytest.raises(UserError, match=r"Lfm2ForCausalLM cannot be sampled .* log-probs .* differ; try rollout=vllm"):
        sampler(model)
