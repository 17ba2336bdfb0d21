"""Frequencies that transformers takes from the longest text of a batch are those of the run's longest, always."""

from typing import Any

import pytest
import torch

from opd.model.rope import FIXED
from opd.rollout.replica import refresh, replicate
from tests.unit.rollout.families import build

DEPENDING = ["phi3-longrope", "llama-dynamic"]
LONG, SHORT = 40, 5


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@pytest.mark.parametrize("family", DEPENDING)
def test_a_text_has_the_frequencies_of_the_longest_whatever_it_is_read_with(family: str):
    ids = torch.randint(2, 13, (1, LONG), generator=torch.Generator().manual_seed(1))
    plain, fixed = build(family, torch.float64, longest=None), build(family, torch.float64, longest=LONG)
    whole = logits(plain, ids)
    torch.testing.assert_close(logits(fixed, ids), whole, rtol=0, atol=1e-12)
    # The model is causal, so the beginning of a text has the numbers of the whole text; as it was, it has not.
    torch.testing.assert_close(logits(fixed, ids[:, :SHORT]), whole[:, :SHORT], rtol=0, atol=1e-12)
    assert (logits(build(family, torch.float64, longest=None), ids[:, :SHORT]) - whole[:, :SHORT]).abs().max() > 0.05


@pytest.mark.parametrize("family", DEPENDING)
def test_where_no_text_is_longer_than_the_original_length_nothing_changes(family: str):
    ids = torch.randint(2, 13, (2, SHORT), generator=torch.Generator().manual_seed(1))
    plain, fixed = build(family, longest=None), build(family, longest=16)
    assert torch.equal(logits(fixed, ids), logits(plain, ids))


@pytest.mark.parametrize("family", [*DEPENDING, "gemma3-dynamic"])
def test_a_copy_has_the_learners_frequencies(family: str):
    model = build(family, longest=LONG)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)  # so that the copy is not the learner
    copy = replicate(model, "int8")
    refresh(copy, model, "int8")
    assert copy is not model
    ours, theirs = ({n: m for n, m in each.named_modules() if hasattr(m, "rope_type")} for each in (copy, model))
    assert ours.keys() == theirs.keys() != set()
    for name, module in ours.items():
        assert module.rope_type == theirs[name].rope_type and module.rope_type is not None
        for (buffer, value), (other, expected) in zip(
            module.named_buffers(recurse=False), theirs[name].named_buffers(recurse=False), strict=True
        ):
            assert buffer == other and torch.equal(value, expected)


@pytest.mark.parametrize("family", ["qwen3", "llama-rope-scaled", "gemma3-mixed"])
def test_frequencies_that_do_not_depend_on_the_length_stay(family: str):
    model, plain = build(family, longest=1000), build(family, longest=None)
    for (name, module), (_, other) in zip(model.named_modules(), plain.named_modules(), strict=True):
        assert getattr(module, "rope_type", None) == getattr(other, "rope_type", None), name
    assert FIXED not in str([getattr(module, "rope_type", None) for module in model.modules()])
