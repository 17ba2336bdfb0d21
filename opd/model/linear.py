"""A model's linear maps: torch's, and those of GPT-2, which hold their weight the other way round."""

from torch import nn
from transformers.pytorch_utils import Conv1D

Linear = nn.Linear | Conv1D


def output_axis(linear: Linear) -> int:
    """The axis of the weight along which the outputs lie: 0, in GPT-2 1."""
    return 1 if isinstance(linear, Conv1D) else 0
