"""Policy and forward against plain transformers calls, row by row and without padding."""

import pytest
import torch

from opd.data.batch import Rollout
from opd.model.forward import micro_batches
from opd.model.policy import Policy
from tests.unit.small import ALONE, rollout_of, root, tiny_qwen3


def plain_scores(model, rollout: Rollout, temperature: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probs and entropies of each row's response, from one unpadded forward a row."""
    logps, entropies = [], []
    for row in range(len(rollout)):
        prompt = rollout.prompt[row][rollout.prompt_mask[row]]
        response = rollout.tokens[row][rollout.mask[row]]
        logits = model(torch.cat([prompt, response])[None]).logits[0] / temperature
        log_p = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        logps.append(log_p.gather(1, response[:, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return logps, entropies


def policy(model, *, micro_batch_tokens: int = 10_000, logit_chunk: int = 3, temperature: float = 0.7) -> Policy:
    return Policy(
        root(model), ALONE, micro_batch_tokens=micro_batch_tokens, logit_chunk=logit_chunk, temperature=temperature
    )


@pytest.mark.parametrize("micro_batch_tokens", [1, 12, 10_000])
def test_scores_are_those_of_an_unpadded_forward(rollout: Rollout, micro_batch_tokens: int):
    model = tiny_qwen3()
    scores = policy(model, micro_batch_tokens=micro_batch_tokens).scores(rollout)
    for row, (logp, entropy) in enumerate(zip(*plain_scores(model, rollout, 0.7), strict=True)):
        mask = rollout.mask[row]
        torch.testing.assert_close(scores.logp[row][mask], logp, atol=1e-10, rtol=0)
        torch.testing.assert_close(scores.entropy[row][mask], entropy, atol=1e-10, rtol=0)
    assert (scores.logp[~rollout.mask] == 0).all() and (scores.entropy[~rollout.mask] == 0).all()


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("micro_batch_tokens", [1, 12, 10_000])
def test_backward_is_autograd_of_the_plain_loss(rollout: Rollout, tie: bool, micro_batch_tokens: int):
    generator = torch.Generator().manual_seed(2)
    grad_logp, grad_entropy = torch.randn(2, *rollout.tokens.shape, generator=generator, dtype=torch.float64)

    expected = tiny_qwen3(tie=tie)
    logps, entropies = plain_scores(expected, rollout, 0.7)
    loss = sum(
        (grad_logp[row][mask] * logp).sum() + (grad_entropy[row][mask] * entropy).sum()
        for row, (mask, logp, entropy) in enumerate(zip(rollout.mask, logps, entropies, strict=True))
    )
    loss.backward()

    ours = tiny_qwen3(tie=tie)
    policy(ours, micro_batch_tokens=micro_batch_tokens).backward(rollout, grad_logp, grad_entropy)
    for (name, wanted), got in zip(expected.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, atol=1e-11, rtol=1e-10, msg=name)


def test_micro_batches_hold_every_response_token_once_and_keep_the_budget(rollout: Rollout):
    seen = torch.zeros_like(rollout.mask, dtype=torch.long)
    for micro in micro_batches(rollout, max_tokens=16):
        assert micro.inputs.numel() <= 16 or len(micro.rows) == 1
        assert int(micro.predicts.sum()) == len(micro.tokens) == int(micro.response.sum())
        seen[micro.rows] += micro.response
    assert torch.equal(seen, rollout.mask.long())


def test_the_shift_is_by_one(rollout: Rollout):
    # A model that is sure of "next = current + 1" scores a rising sequence with log-prob 0 and no other.
    rising, falling = rollout_of([[2, 3]], [[4, 5, 6]]), rollout_of([[2, 3]], [[3, 2, 1]])
    model = tiny_qwen3()
    successor = torch.zeros(13, 16, dtype=torch.float64)
    model.model.embed_tokens.weight.data = torch.eye(13, 16, dtype=torch.float64)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    successor[torch.arange(1, 13), torch.arange(12)] = 100.0
    model.lm_head.weight.data = successor
    assert policy(model).scores(rising).logp.abs().max() < 1e-6
    assert policy(model).scores(falling).logp.max() < -10
