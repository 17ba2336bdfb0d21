"""A model's linear maps: torch's, and those of GPT-2, whose weights are transposed."""

from torch import nn
from transformers.pytorch_utils import Conv1D

Linear = nn.Linear | Conv1D


def output_axis(linear: Linear) -> int:
    """The output axis of the weight: 0, in GPT-2 1."""
    return 1 if isinstance(linear, Conv1D) else 0
