"""What families do with their logits, against transformers' own."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from opd.errors import UserError
from opd.model.forward import MicroBatch
from opd.model.head import check_head, output_head, transform
from opd.model.policy import Policy
from opd.objective import divergence, fused
from opd.objective.head import Head
from tests.unit.rollout.families import build, double_norms
from tests.unit.small import ALONE, rollout_of, root

MADE: dict[str, partial] = {
    "plain": partial(build, "qwen3"),
    "capped": partial(build, "gemma2-capped", final_logit_softcapping=5.0),
    "divided": partial(build, "granite-scaled"),
    "multiplied": partial(build, "cohere-scaled"),
    "biased": partial(build, "phi-biased"),
}
ROLLOUT = rollout_of([[3, 4], [5, 6, 7], [8]], [[9, 10, 2], [4, 1], [12, 11, 10, 9, 8]])


def made(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    """A model whose largest logit is about 20 before what the family does with it."""
    model = MADE[kind](dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(5)
    return model


def policy(model: Any) -> Policy:
    return Policy(root(model), ALONE, micro_batch_tokens=1, logit_chunk=3, temperature=1.0)


def rows(model: Any) -> list[torch.Tensor]:
    """The log-probs of each response token's whole distribution, row by row."""
    found = []
    for row in range(len(ROLLOUT)):
        prompt, response = (
            ids[row][mask[row]] for ids, mask in ((ROLLOUT.prompt, ROLLOUT.prompt_mask), (ROLLOUT.tokens, ROLLOUT.mask))
        )
        logits = model(torch.cat([prompt, response])[None]).logits[0]
        found.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
    return found


@pytest.mark.parametrize("kind", MADE)
def test_scores_are_those_of_the_familys_own_logits(kind: str, monkeypatch: pytest.MonkeyPatch):
    double_norms(monkeypatch)
    model = made(kind)
    check_head(model, key=kind)
    scores = policy(model).scores(ROLLOUT)
    for row, log_p in enumerate(rows(model)):
        tokens = ROLLOUT.tokens[row][ROLLOUT.mask[row]]
        expected = log_p.gather(1, tokens[:, None])[:, 0].detach()
        torch.testing.assert_close(scores.logp[row][ROLLOUT.mask[row]], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", MADE)
def test_gradients_over_the_vocabulary_are_autograds_of_the_familys_own_logits(
    kind: str, monkeypatch: pytest.MonkeyPatch
):
    double_norms(monkeypatch)
    teacher, student, expected = made("capped"), made(kind), made(kind)
    for model in (student, expected):  # another student than the teacher, in its own family too
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.3)
    log_q = [each.detach() for each in rows(teacher)]
    total = torch.zeros((), dtype=torch.float64)
    for log_p, reference in zip(rows(expected), log_q, strict=True):
        total = total + (log_p.exp() * (log_p - reference)).sum()
    total.backward()

    ours, theirs = policy(student), policy(teacher)
    hidden = theirs.empty_hidden(ROLLOUT)
    theirs.scores(ROLLOUT, hidden)
    lengths, head = ROLLOUT.mask.sum(1).tolist(), theirs.full_head()
    for micro in ours.micro_batches(ROLLOUT):
        (row,) = micro.rows.tolist()

        def loss(states: torch.Tensor, own: Head, micro: MicroBatch = micro, row: int = row) -> torch.Tensor:
            of_row = hidden[sum(lengths[:row]) : sum(lengths[: row + 1])]
            return fused.measure(states, own, of_row, head, divergence.reverse_kl(), chunk_size=3).loss

        ours.learn(micro, loss)
    for (name, wanted), found in zip(expected.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("small", [1.0, 1e-3])
@pytest.mark.parametrize("kind", MADE)
def test_a_transform_that_is_not_known_is_seen_however_small_the_weights_are(kind: str, small: float):
    model = made(kind, torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(small)
    check_head(model, key=kind)
    plain = model.forward
    for change in (lambda x: x * 1.01, lambda x: x + torch.linspace(0, 1, 13), lambda x: 30 * torch.tanh(x / 30)):

        def forward(*given: Any, change: Any = change, **more: Any) -> Any:
            output = plain(*given, **more)
            output.logits = change(output.logits)
            return output

        model.forward = forward
        with pytest.raises(UserError, match=f"{kind}: .* changes its logits"):
            check_head(model, key=kind)


def test_a_head_that_is_missing_or_read_elsewhere_is_refused_by_the_family():
    model = made("plain", torch.float32)
    model.set_output_embeddings(nn.Sequential(model.lm_head))
    with pytest.raises(UserError, match="Qwen3ForCausalLM has no output head"):
        check_head(model, key="student.model")
    model = made("plain", torch.float32)
    beside = nn.Linear(*reversed(model.lm_head.weight.shape), bias=False)
    model.get_output_embeddings = lambda: beside
    with pytest.raises(UserError, match="does not read its output head once"):
        check_head(model, key="student.model")


def test_the_heads_numbers_are_the_configs():
    assert transform(made("capped").config) == (1.0, 5.0)
    assert transform(made("divided").config) == (1 / 3.0, None)
    assert transform(made("multiplied").config) == (0.25, None)
    assert output_head(made("biased")).bias is not None
