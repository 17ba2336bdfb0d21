"""What a step cost: tokens a second, model FLOPs, the share of the device's peak, memory.

Model FLOPs are those that learning needs, whatever an engine computes twice to save memory (PaLM, arXiv:2204.02311,
appendix B): a product with N weights takes 2 N a token forward and twice as many backward, hence 6 N; attention over L
tokens takes two products of queries with keys and of weights with values, 4 L² a head and head dimension forward, the
whole square counted although half of it is masked, and twice as many backward. Frozen weights take 2 N backward, for
they have no gradient of their own.
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
from transformers import PreTrainedModel

from opd.data.batch import Rollout
from opd.model.sharded import layers
from opd.ranks.dist import Ranks

# Dense TFLOP/s in bfloat16 (summed in float32) and in float32 without TF32, by the device's name as CUDA gives it.
# Sources: NVIDIA's data sheets of each (H100, H200, GH200, B200, A100, A10, L4, L40, L40S, V100), half of what they
# give "with sparsity"; for RTX cards the tables of the Ada and Ampere GA102 whitepapers.
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


@dataclass(frozen=True)
class Work:
    """What a model's FLOPs depend on. Embedding tables are looked up, not multiplied; a tied one counts as the head."""

    layer_weights: int  # of all products in all layers
    head_weights: int
    frozen_layer_weights: int
    frozen_head_weights: int
    attention: int  # layers · query heads · head dimension

    def forward(self, lengths: Int[Tensor, " row"], predicted: Int[Tensor, " row"]) -> float:
        """FLOPs of rows of so many tokens, of which so many positions are taken to logits."""
        rows, asked = lengths.double(), predicted.double()
        products = 2 * self.layer_weights * rows.sum() + 2 * self.head_weights * asked.sum()
        return float(products + 4 * self.attention * rows.square().sum())

    def learning(self, rollout: Rollout) -> float:
        """FLOPs of one forward and backward pass over a rollout."""
        length = rollout.mask.sum(1)
        rows = rollout.prompt_mask.sum(1) + length - 1
        spared = self.frozen_layer_weights * rows.sum() + self.frozen_head_weights * length.sum()
        return 3 * self.forward(rows, length) - 2 * float(spared)


def work_of(model: PreTrainedModel) -> Work | None:
    """The FLOPs of `model`; None where its tokens take different ways (experts), which no count of weights tells."""
    config = model.config.get_text_config()
    if any(re.match(r"num_.*experts", key) for key in vars(config)):
        return None
    blocks, heads = layers(model), config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    head: Any = model.get_output_embeddings().weight  # pyright: ignore
    weights = [weight for block in blocks for weight in block.parameters() if weight.ndim == 2]
    return Work(
        layer_weights=sum(weight.numel() for weight in weights),
        head_weights=head.numel(),
        frozen_layer_weights=sum(weight.numel() for weight in weights if not weight.requires_grad),
        frozen_head_weights=0 if head.requires_grad else head.numel(),
        attention=len(blocks) * heads * size,
    )


def peak_tflops(device_name: str, dtype: str) -> float | None:
    """The dense peak of a CUDA device for products in `dtype` ("bfloat16" or "float32"); None where it is not known."""
    for pattern, bfloat16, float32 in PEAKS:
        if re.search(pattern, device_name):
            return bfloat16 if dtype == "bfloat16" else float32
    return None


class Meter:
    """Measures steps, one after another; all ranks must ask it for metrics."""

    def __init__(self, model: PreTrainedModel, ranks: Ranks, dtype: str):
        self.work, self.ranks = work_of(model), ranks
        # With TF32, float32 products have another peak.
        exact = dtype == "bfloat16" or torch.get_float32_matmul_precision() == "highest"
        cuda = ranks.device.type == "cuda"
        self.peak = peak_tflops(torch.cuda.get_device_name(ranks.device), dtype) if cuda and exact else None
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self.began, self.flops = time.perf_counter(), 0.0
        if self.ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.ranks.device)

    def learns(self, own: Rollout) -> None:
        """This rank learns these responses in this step."""
        if self.work is not None:
            self.flops += self.work.learning(own)

    def metrics(self, tokens: float, seconds: Mapping[str, float]) -> dict[str, float]:
        """What the step cost that began last and ends now: `tokens` sampled by all ranks, `seconds` by stage.

        `throughput/model_tflops` and `throughput/mfu` are of the student's passes (`time/student`, `time/backward`), a
        device; the latter only where the device's peak is known. `memory/peak_gb` (10⁹ bytes) is the most on any
        rank: on CUDA what was allocated at once during the step, else what the process has held at most so far.
        """
        step = time.perf_counter() - self.began
        learning = seconds.get("time/student", 0.0) + seconds.get("time/backward", 0.0)
        each = self.ranks.collect((self.flops, peak_memory(self.ranks.device)))
        found = {"time/step": step, "throughput/tokens_per_second": tokens / step}
        if learning and self.work is not None:
            tflops = sum(flops for flops, _ in each) / self.ranks.size / learning / 1e12
            found["throughput/model_tflops"] = tflops
            if self.peak is not None:
                found["throughput/mfu"] = tflops / self.peak
        return found | {"memory/peak_gb": max(memory for _, memory in each) / GB}


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the most allocated since the last reset, else the most that this process has held in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    held = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.M) if status.exists() else None
    if held:
        return int(held[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
