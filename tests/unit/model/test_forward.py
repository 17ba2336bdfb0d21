"""Micro-batches: rows of like length together within a budget, whatever the order they came in."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from opd.data.batch import Rollout
from opd.model.forward import micro_batches
from opd.model.policy import Policy
from opd.model.sharded import Root
from opd.ranks.dist import Ranks

CPU = torch.device("cpu")


def ragged(num: int) -> Rollout:
    """Random prompts and responses of many lengths; response tokens are all different."""
    generator = torch.Generator().manual_seed(0)
    prompt_length, length = (torch.randint(low, 14, (num, 1), generator=generator) for low in (1, 1))
    prompt_mask, mask = torch.arange(14) >= 14 - prompt_length, torch.arange(14) < length
    return Rollout(
        prompt=torch.randint(2, 40, (num, 14), generator=generator) * prompt_mask,
        prompt_mask=prompt_mask,
        tokens=torch.randint(2, 40, (num, 14), generator=generator) * mask,
        mask=mask,
        learned=mask,
        rollout_logp=torch.zeros(num, 14),
        group=torch.arange(num),
        truncated=torch.zeros(num, dtype=torch.bool),
    )


def policy(max_tokens: int) -> Policy:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).double().eval()
    ranks = Ranks(0, 1, CPU, grouped=False)
    return Policy(Root(model, ranks), ranks, micro_batch_tokens=max_tokens, logit_chunk=7, temperature=1.0)


@pytest.mark.parametrize("max_tokens", [1, 30, 100, 10_000])
def test_every_row_is_in_one_micro_batch_with_rows_of_like_length_and_the_budget_holds(max_tokens: int):
    rollout = ragged(40)
    parts = list(micro_batches(rollout, max_tokens=max_tokens))
    assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(40))
    assert all(part.inputs.numel() <= max_tokens or len(part.rows) == 1 for part in parts)
    lengths = (rollout.prompt_mask.sum(1) + rollout.mask.sum(1))[torch.cat([part.rows for part in parts])]
    assert (lengths.diff() <= 0).all()


@pytest.mark.parametrize("max_tokens", [30, 10_000])
def test_the_order_of_rows_and_the_budget_change_no_score_and_no_gradient(max_tokens: int):
    rollout, order = ragged(12), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = Rollout(**{name: value[order] for name, value in vars(rollout).items()})
    grad = torch.randn(12, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * rollout.mask
    one, other = policy(10_000), policy(max_tokens)
    ours, theirs = one.scores(rollout), other.scores(shuffled)
    torch.testing.assert_close(theirs.logp, ours.logp[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(theirs.entropy, ours.entropy[order], rtol=0, atol=1e-12)
    one.backward(rollout, grad, 0.3 * grad)
    other.backward(shuffled, grad[order], 0.3 * grad[order])
    for mine, its in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(its.grad, mine.grad, rtol=0, atol=1e-11)
