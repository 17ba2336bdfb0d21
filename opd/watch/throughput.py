"""The cost of a step: tokens per second, model FLOPs, model FLOPs utilisation, memory.

Model FLOPs are those that learning requires, without recomputation that saves memory (PaLM, arXiv:2204.02311, appendix
B): a product with N weights takes 2 N per token forward and twice that backward, 6 N in all; attention over L tokens
takes two products, queries with keys and weights with values, 4 L² per head and head dimension forward (the full
square, although half of it is masked) and twice that backward. Frozen weights take 2 N backward, because they have no
gradient of their own.
"""

import re
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from opd.data.batch import Rollout
from opd.model.sharded import layers
from opd.ranks.dist import Ranks

# Dense TFLOP/s in bfloat16 (accumulated in float32) and in float32 without TF32, by CUDA's name of the device. Sources:
# NVIDIA's data sheets (H100, H200, GH200, B200, A100, A10, L4, L40, L40S, V100), half of their figures "with sparsity";
# for RTX cards the tables of the Ada and Ampere GA102 whitepapers.
PEAKS: tuple[tuple[str, float | None, float], ...] = (
    (r"\bB200\b", 2250.0, 75.0),
    (r"\bGH200\b", 990.0, 67.0),
    (r"\bH200 NVL\b", 835.5, 60.0),
    (r"\bH200\b", 989.5, 67.0),
    (r"\bH100 NVL\b", 835.5, 60.0),
    (r"\bH100 PCIe\b", 756.0, 51.0),
    (r"\bH100\b", 989.5, 67.0),
    (r"\bA100\b", 312.0, 19.5),
    (r"\bA10\b", 125.0, 31.2),
    (r"\bL40S\b", 362.0, 91.6),
    (r"\bL40\b", 181.0, 90.5),
    (r"\bL4\b", 121.0, 30.3),
    (r"\bV100\b", None, 15.7),
    (r"\bRTX 4090\b", 165.2, 82.6),
    (r"\bRTX 3090\b", 71.0, 35.6),
)
GB = 1e9  # bytes

ATTENTION = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Work:
    """Sizes that a model's FLOPs depend on. Embeddings are looked up, not multiplied; tied ones count as the head."""

    layer_weights: int  # of all products in all layers
    head_weights: int
    frozen_layer_weights: int
    frozen_head_weights: int
    attention: int  # layers · query heads · head dimension

    def forward(self, lengths: Int[Tensor, " row"], predicted: Int[Tensor, " row"]) -> float:
        """Forward FLOPs of rows of `lengths` tokens with logits at `predicted` positions."""
        rows, num_logits = lengths.double(), predicted.double()
        products = 2 * self.layer_weights * rows.sum() + 2 * self.head_weights * num_logits.sum()
        return float(products + 4 * self.attention * rows.square().sum())

    def learning(self, rollout: Rollout) -> float:
        """FLOPs of one forward and backward pass over a rollout."""
        length = rollout.mask.sum(1)
        rows = rollout.prompt_mask.sum(1) + length - 1
        frozen = self.frozen_layer_weights * rows.sum() + self.frozen_head_weights * length.sum()
        return 3 * self.forward(rows, length) - 2 * float(frozen)


def work_of(model: PreTrainedModel) -> Work | None:
    """The `Work` of `model`; None where it is something else: in mixtures of experts tokens do not use all weights, and
    layers with a state instead of keys and values compute more than products with weights.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    experts = any(value and re.match(r"(n|num)_.*experts", key) for key, value in vars(config).items())
    if experts or kinds - ATTENTION or not hasattr(config, "num_attention_heads"):
        return None
    blocks = layers(model)
    # Stacked experts have three axes, and so have the convolutions of layers with a state.
    if any(weight.ndim > 2 for block in blocks for weight in block.parameters()):
        return None
    each = config.per_layer_config if config.is_heterogeneous else [config] * len(blocks)
    head: Any = model.get_output_embeddings().weight  # pyright: ignore
    weights = [weight for block in blocks for weight in block.parameters() if weight.ndim == 2]
    return Work(
        layer_weights=sum(weight.numel() for weight in weights),
        head_weights=head.numel(),
        frozen_layer_weights=sum(weight.numel() for weight in weights if not weight.requires_grad),
        frozen_head_weights=0 if head.requires_grad else head.numel(),
        attention=sum(map(_attention, each)),
    )


def _attention(config: PreTrainedConfig) -> int:
    """Query heads · head dimension of a layer, as the mean of what queries and values have."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * (getattr(config, "qk_head_dim", size) + getattr(config, "v_head_dim", size)) // 2


def peak_tflops(device_name: str, dtype: str) -> float | None:
    """The dense peak of a CUDA device for products in `dtype` ("bfloat16" or "float32"); None if unknown."""
    for pattern, bfloat16, float32 in PEAKS:
        if re.search(pattern, device_name):
            return bfloat16 if dtype == "bfloat16" else float32
    return None


class Meter:
    """Measures one step after another; all ranks must call `metrics`."""

    def __init__(self, model: PreTrainedModel, ranks: Ranks, dtype: str):
        self.work, self.ranks = work_of(model), ranks
        # With TF32, float32 products have another peak.
        exact = dtype == "bfloat16" or torch.get_float32_matmul_precision() == "highest"
        cuda = ranks.device.type == "cuda"
        self.peak = peak_tflops(torch.cuda.get_device_name(ranks.device), dtype) if cuda and exact else None
        self.begin()

    def begin(self) -> None:
        """Starts a step."""
        self.began, self.flops = time.perf_counter(), 0.0
        if self.ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.ranks.device)

    def count(self, own: Rollout) -> None:
        """Counts the responses that this rank learns in this step."""
        if self.work is not None:
            self.flops += self.work.learning(own)

    def metrics(self, tokens: float, seconds: Mapping[str, float]) -> dict[str, float]:
        """Ends the step and returns its cost: `tokens` were sampled by all ranks, `seconds` are by stage.

        `throughput/model_tflops` and `throughput/mfu` are per device, of the student's passes (`time/student`,
        `time/backward`); the latter only where the device's peak is known. `memory/peak_gb` (10⁹ bytes) is the maximum
        over the ranks: on CUDA the peak of allocated memory during the step, else the peak of the process so far.
        """
        step = time.perf_counter() - self.began
        learning = seconds.get("time/student", 0.0) + seconds.get("time/backward", 0.0)
        each = self.ranks.gather((self.flops, peak_memory(self.ranks.device)))
        metrics = {"time/step": step, "throughput/tokens_per_second": tokens / step}
        if learning and self.work is not None:
            tflops = sum(flops for flops, _ in each) / self.ranks.size / learning / 1e12
            metrics["throughput/model_tflops"] = tflops
            if self.peak is not None:
                metrics["throughput/mfu"] = tflops / self.peak
        return metrics | {"memory/peak_gb": max(memory for _, memory in each) / GB}


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the peak of allocated memory since the last reset, else the peak of this process's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.M) if status.exists() else None
    if peak:
        return int(peak[1]) * 1024
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss if sys.platform == "darwin" else peak_rss * 1024
