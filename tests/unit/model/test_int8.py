"""Weights in 8 bits: the bound of their rounding, and models that hold them."""

import copy

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from opd.model.int8 import Int8Linear, quantize, quantize_layers
from opd.model.sharded import layers
from opd.rollout.replica import ROUNDING
from tests.unit.rollout.families import build


@given(st.integers(0, 2**32), st.sampled_from([0, 1]), st.sampled_from([1e-6, 1.0, 1e6]))
def test_a_weight_is_within_half_a_step_of_what_it_was(seed: int, output_axis: int, size: float):
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size
    quantized, scale = quantize(weight, output_axis)
    assert quantized.dtype == torch.int8 and scale.shape == ((5, 1), (1, 7))[output_axis]
    assert ((weight - quantized * scale).abs() <= scale / 2 * (1 + 1e-12)).all()
    assert torch.equal(quantized.abs().amax(1 - output_axis), torch.full((weight.shape[output_axis],), 127))
    assert torch.equal(ROUNDING["int8"](weight, output_axis), quantized * scale)


def test_by_hand():
    """Scales 2 / 127 and, of zeros, 1: 1 is at 63.5 steps, which rounds to even."""
    quantized, scale = quantize(torch.tensor([[2.0, -1.0, 0.01], [0.0, 0.0, 0.0]], dtype=torch.float64), 0)
    assert quantized.tolist() == [[127, -64, 1], [0, 0, 0]] and scale[:, 0].tolist() == [2 / 127, 1.0]


@pytest.mark.parametrize("linear", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False), Conv1D(4, 6)])
def test_a_linear_map_is_that_of_its_rounded_weight(linear: nn.Module):
    rounded, inputs = copy.deepcopy(linear), torch.randn(3, 6)
    with torch.no_grad():
        weight: torch.Tensor = rounded.weight  # pyright: ignore
        weight.copy_(ROUNDING["int8"](weight, 1 if isinstance(linear, Conv1D) else 0))
        held = Int8Linear(linear)  # pyright: ignore
        torch.testing.assert_close(held(inputs), rounded(inputs))
    assert not list(held.parameters())


@pytest.mark.parametrize("family", ["qwen3", "qwen3-tied", "llama-biased", "gpt2"])
def test_a_model_holds_its_layers_in_8_bits_and_answers_as_with_rounded_weights(family: str):
    model = build(family)
    rounded, head = copy.deepcopy(model), model.get_output_embeddings().weight.clone()  # pyright: ignore
    with torch.no_grad():
        for layer in layers(rounded):
            for module in layer.modules():
                if isinstance(module, nn.Linear | Conv1D):
                    module.weight.copy_(ROUNDING["int8"](module.weight, 1 if isinstance(module, Conv1D) else 0))
        quantize_layers(model)
        tokens = torch.tensor([[3, 4, 5, 6, 7]])
        torch.testing.assert_close(model(tokens).logits, rounded(tokens).logits, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, nn.Linear | Conv1D) for layer in layers(model) for module in layer.modules())
    assert torch.equal(model.get_output_embeddings().weight, head)  # pyright: ignore
