"""After every sync vLLM samples from the learner as it is now, and the check that can be left on says where not."""

import math
import resource

import pytest
import torch

from opd.errors import UserError
from opd.rollout import vllm as module, vllm_engine
from tests.unit.rollout.families import PLAIN, prompts
from tests.unit.rollout.test_sampler import reference_logp
from tests.vllm.models import build, long_prompts, scaled


@pytest.mark.parametrize("family", ["qwen3", "qwen3-tied"])
def test_what_is_sampled_is_of_the_newest_weights(family: str, start):
    """The head (which a tied model shares with its embedding), every layer, and no keys or values of before."""
    model, given = build(family), long_prompts()
    ours = start(model)
    rollouts = []
    for step in range(4):
        rollout = ours.sample(given, PLAIN, key=(1,))
        gap = (rollout.rollout_logp - reference_logp(model, rollout, PLAIN))[rollout.mask].abs()
        assert gap.max() < 1e-4, step
        rollouts.append(rollout)
        scaled(model, 1.15)
        ours.sync()
    assert not torch.equal(rollouts[0].rollout_logp, rollouts[1].rollout_logp)


def test_without_a_sync_it_samples_as_before_and_the_check_says_so(start):
    model = build("qwen3-tied")
    ours, unchecked = start(model, max_logp_drift=1e-3), start(model, max_logp_drift=None)
    expected = ours.sample(prompts(), PLAIN, key=(1,))
    assert 0 < ours.drift < 1e-5
    scaled(model, 1.3)
    stale = unchecked.sample(prompts(), PLAIN, key=(1,))
    assert torch.equal(stale.tokens, expected.tokens) and torch.equal(stale.rollout_logp, expected.rollout_logp)
    assert math.isnan(unchecked.drift)
    with pytest.raises(UserError, match=r"rollout.max_logp_drift=0.001: .* from the learner's on average; set a high"):
        ours.sample(prompts(), PLAIN, key=(1,))
    assert ours.drift > 0.01
    ours.sync()
    ours.sample(prompts(), PLAIN, key=(1,))
    assert ours.drift < 1e-5


@pytest.mark.parametrize("part", ["prefix cache", "tied head"])
def test_what_a_sync_must_renew_is_what_the_check_finds_old(part: str, start, monkeypatch: pytest.MonkeyPatch):
    """Without the reset of the cache, or without packing the tied head anew, the log-probs are those of no model."""
    model = build("qwen3-tied")
    ours = start(model, max_logp_drift=1e-3)
    ours.sample(long_prompts(), PLAIN, key=(1,))
    if part == "prefix cache":
        monkeypatch.setattr(module.VllmSampler, "_reset_prefix_cache", lambda self: None)
    else:
        monkeypatch.setattr(vllm_engine, "on_cpu", lambda: False)
    scaled(model, 1.3)
    ours.sync()
    with pytest.raises(UserError, match=r"rollout.max_logp_drift=0.001"):
        ours.sample(long_prompts(), PLAIN, key=(1,))


def test_bfloat16_disagrees_with_the_learner_a_little(start):
    model = build("qwen3-tied")
    ours = start(model, dtype="bfloat16", max_logp_drift=0.3)
    for _ in range(2):
        rollout = ours.sample(prompts(), PLAIN, key=(1,))
        gap = (rollout.rollout_logp - reference_logp(model, rollout, PLAIN))[rollout.mask].abs()
        assert 1e-3 < gap.mean() < 0.1 and gap.max() < 1
        assert ours.drift == pytest.approx(float(gap.mean()), rel=0.5)
        scaled(model, 1.1)
        ours.sync()


def test_greedy_responses_have_no_drift_to_measure(start):
    ours = start(build("qwen3-tied"), max_logp_drift=1e-9)
    ours.sample(prompts(), module.Sampling(1, 5, 0.0, 1.0, 0), key=(1,))


def test_an_engine_that_ends_leaves_the_next_one_alone(start):
    """As the runs of a multirun do, one after another in a process; vLLM would end the process groups of all."""
    old, new = start(build("qwen3")), start(build("qwen3"))
    expected = old.sample(prompts(), PLAIN, key=(1,))
    old.close()
    assert torch.equal(new.sample(prompts(), PLAIN, key=(1,)).tokens, expected.tokens)
    new.sync()


def test_many_syncs_take_no_more_memory_than_a_few(start):
    model = build("qwen3-tied", hidden_size=256, intermediate_size=1024)
    ours = start(model)
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())

    def peak_after(syncs: int) -> int:
        for _ in range(syncs):
            ours.sync()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    few = peak_after(20)
    assert peak_after(60) - few < 10 * size
