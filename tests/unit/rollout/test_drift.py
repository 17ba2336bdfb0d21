"""How far a sampler is from the learner: nothing where they agree, and what is put between them where they do not."""

import math
from dataclasses import replace

import pytest
import torch

from opd.data.batch import Prompt, Rollout, Sampling
from opd.model.sharded import Root
from opd.ranks.dist import Ranks
from opd.rollout import drift
from opd.rollout.drift import mean_drift
from opd.rollout.sampler import TransformersSampler
from tests.unit.small import root, tiny_qwen3


@pytest.fixture(scope="module")
def learner() -> Root:
    return root(tiny_qwen3(dtype=torch.float32))


def sampled(learner: Root, sampling: Sampling) -> Rollout:
    sampler = TransformersSampler(learner, stop_ids=[1], pad_id=0, dtype="float32", max_batch_tokens=400)
    return sampler.sample([Prompt(str(at), "", "", "", (2 + at, 5)) for at in range(8)], sampling, key=(0,))


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.6, 1.0, 0), (1.3, 0.8, 6)])
def test_no_drift_on_own_samples(learner: Root, temperature: float, top_p: float, top_k: int):
    sampling = Sampling(4, 9, temperature, top_p, top_k)
    rollout = sampled(learner, sampling)
    assert mean_drift(learner, rollout, sampling) < 1e-5
    shifted = replace(rollout, rollout_logp=rollout.rollout_logp + 0.25 * rollout.mask)
    assert mean_drift(learner, shifted, sampling) == pytest.approx(0.25, abs=1e-5)


def test_impossible_token_counts_as_bound(learner: Root):
    wide, narrow = Sampling(1, 9, 1.0, 1.0, 0), Sampling(1, 9, 1.0, 1.0, 1)
    rollout = sampled(learner, wide)
    rollout = replace(rollout, rollout_logp=torch.zeros_like(rollout.rollout_logp))
    found = mean_drift(learner, rollout, narrow)
    assert 0 < found < drift.MAX_TOKEN_DRIFT and (
        found * int(rollout.mask.sum()) / drift.MAX_TOKEN_DRIFT
    ) % 1 == pytest.approx(0, abs=1e-4)


def test_compared_responses_are_evenly_spread(learner: Root, monkeypatch: pytest.MonkeyPatch):
    sampling = Sampling(4, 9, 1.0, 1.0, 0)
    rollout = sampled(learner, sampling)
    shift = torch.arange(len(rollout))[:, None] * 0.1 * rollout.mask
    shifted = replace(rollout, rollout_logp=rollout.rollout_logp + shift)
    monkeypatch.setattr(drift, "ROWS", 3)
    length, rows = rollout.mask.sum(1).double(), [0, 15, 31]
    expected = sum(0.1 * row * length[row] for row in rows) / sum(length[row] for row in rows)
    assert mean_drift(learner, shifted, sampling) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("setting", [(1.0, 1.0, 0), (1.3, 0.8, 6)])
def test_drift_without_responses(learner: Root, setting: tuple):
    """As where a benchmark has fewer problems than there are ranks."""

    class Others(Ranks):
        def max(self, number: int) -> int:
            return max(number, 2)

    sampling = Sampling(1, 4, *setting)
    rollout = sampled(learner, sampling)
    beside = Root(learner.model, Others(rank=0, size=1, device=torch.device("cpu"), grouped=False))
    for each in (learner, beside):
        assert math.isnan(mean_drift(each, rollout.rows(slice(0)), sampling))
    assert mean_drift(beside, rollout, sampling) < 1e-5
