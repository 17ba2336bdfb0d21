"""Packed rows against padded ones, which are computed as transformers computes them."""

import pytest
import torch

from opd.model import packed
from opd.model.policy import Policy
from opd.model.sharded import layers, recompute
from opd.rollout.replica import refresh, replicate
from tests.unit.rollout.families import FAMILIES, build, double_norms
from tests.unit.small import ALONE, rollout_of, root

PACKED = {
    "qwen3",
    "qwen3-moe",
    "qwen3-tied",
    "qwen2",
    "llama",
    "llama-biased",
    "granite-scaled",
    "cohere-scaled",
    "phi-biased",
    "qwen3-wide",
    "llama-rope-scaled",
    "gpt2",
    "opt",
    "phi3-longrope",
    "llama-dynamic",
}
CPU = torch.device("cpu")


def policy(model, micro_batch_tokens: int = 10_000) -> Policy:
    return Policy(root(model), ALONE, micro_batch_tokens=micro_batch_tokens, logit_chunk=3, temperature=0.7)


def ragged():
    generator = torch.Generator().manual_seed(1)

    def draw(lengths: list[int]) -> list[list[int]]:
        return [torch.randint(2, 13, (length,), generator=generator).tolist() for length in lengths]

    return rollout_of(draw([3, 1, 5, 2, 4]), draw([2, 6, 1, 19, 4]))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each packed pass was of."""
    passes, pass_of = [], packed.hidden

    def hidden(model, inputs, there, device):
        passes.append(int(there.sum()))
        return pass_of(model, inputs, there, device)

    monkeypatch.setattr(packed, "hidden", hidden)
    return passes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_packed_where_its_attention_allows_it(family: str):
    model = build(family)
    packed.enable(model)
    assert packed.enabled(model) == (family in PACKED)


@pytest.mark.parametrize("family", sorted(PACKED))
@pytest.mark.parametrize("micro_batch_tokens", [40, 10_000])
def test_scores_and_gradients_are_those_of_padded_rows(family, micro_batch_tokens, monkeypatch, counted):
    double_norms(monkeypatch)
    plain, ours, rollout = build(family, torch.float64), build(family, torch.float64), ragged()
    packed.enable(ours)
    counted.clear()
    theirs, mine = policy(plain).scores(rollout), policy(ours, micro_batch_tokens).scores(rollout)
    torch.testing.assert_close(mine.logp, theirs.logp, rtol=0, atol=1e-11)
    torch.testing.assert_close(mine.entropy, theirs.entropy, rtol=0, atol=1e-11)
    grad = torch.randn(rollout.tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    policy(plain).backward(rollout, grad, 0.3 * grad)
    policy(ours, micro_batch_tokens).backward(rollout, grad, 0.3 * grad)
    for (name, want), got in zip(plain.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-9, atol=1e-10, msg=name)
    assert sum(counted) == 2 * int((rollout.prompt_mask.sum(1) + rollout.mask.sum(1) - 1).sum())
    assert len(counted) == 2 * (1 if micro_batch_tokens > 40 else 2)


def test_activations_that_are_made_anew_are_packed_too(monkeypatch):
    double_norms(monkeypatch)
    plain, ours, rollout = build(dtype=torch.float64), build(dtype=torch.float64), ragged()
    packed.enable(ours)
    for layer in layers(ours):
        recompute(layer)
    grad = torch.ones(rollout.tokens.shape, dtype=torch.float64)
    policy(plain).backward(rollout, grad, None)
    policy(ours).backward(rollout, grad, None)
    for want, got in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-9, atol=1e-10)


def test_a_token_sees_no_token_of_another_row():
    model = build(dtype=torch.float64)
    packed.enable(model)
    there = torch.arange(6) < torch.tensor([[6], [2], [4]])
    ids = torch.arange(18).view(3, 6) % 11 + 2
    before = packed.hidden(model, ids, there, CPU)
    after = packed.hidden(model, torch.cat([ids[:1], ids[1:2] - 1, ids[2:]]), there, CPU)
    changed = (before != after).any(1)
    assert changed.tolist() == [False] * 6 + [True] * 2 + [False] * 4


def test_a_packed_model_still_generates_and_is_copied(monkeypatch):
    plain, ours = build("llama-rope-scaled"), build("llama-rope-scaled")
    packed.enable(ours)
    ids, mask = torch.tensor([[0, 0, 3, 4], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    settings = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(ours.generate(ids, **settings), plain.generate(ids, **settings))
    copy = replicate(ours, "bfloat16")
    refresh(copy, ours, "bfloat16")
    assert torch.isfinite(copy(ids, attention_mask=mask).logits[:, -1]).all()


def test_a_pass_that_is_not_that_of_padded_rows_is_not_used(monkeypatch):
    monkeypatch.setattr(packed, "_as_mask", lambda places, shape: places.flip(0).expand(*shape, 1, -1))
    model = build()
    packed.enable(model)
    assert not packed.enabled(model)
