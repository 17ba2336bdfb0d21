"""Estimates the memory of a rank before anything is loaded: weights, moments, activations, logits, sampler, teachers.

Sizes come from the models' configs alone (`opd.model.shapes`). A step has four phases, and a rank needs memory for the
largest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedConfig

from opd.check.engines import engine
from opd.check.signal import has_weight
from opd.config.schema import RunConfig
from opd.model.passes import Attention, Held, SavedActivations, held, saved_activations
from opd.model.shapes import Shape, shape

Phase = Literal["sampling", "scoring", "learning", "updating"]
PHASES: tuple[Phase, ...] = ("sampling", "scoring", "learning", "updating")
ALWAYS = PHASES

# The share of a GPU that CUDA, NCCL and fragmentation leave; on a CPU `Machine.memory` is free memory to begin with.
USABLE = {"cuda": 0.92, "cpu": 0.95}

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Machine:
    """`ranks` processes, each with `memory` bytes of its own on a device of this `kind`."""

    kind: Literal["cuda", "cpu"]
    ranks: int
    memory: int

    @property
    def usable(self) -> int:
        return int(USABLE[self.kind] * self.memory)


@dataclass(frozen=True)
class Models:
    """The configs of a run's models; `together` are the sets of teachers that are loaded at the same time."""

    student: PreTrainedConfig
    teachers: Sequence[PreTrainedConfig]
    anchor: PreTrainedConfig | None
    together: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Item:
    """Something that takes `size` bytes of a rank in these phases; `host`: in the CPU's memory."""

    name: str
    size: int
    phases: tuple[Phase, ...]
    host: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of a rank, item by item."""

    items: tuple[Item, ...]
    machine: Machine

    def total(self, phase: Phase) -> int:
        """Bytes on the device in a phase; on a CPU, host memory too."""
        on_cpu = self.machine.kind == "cpu"
        return sum(item.size for item in self.items if phase in item.phases and (on_cpu or not item.host))

    @property
    def worst(self) -> Phase:
        return max(PHASES, key=self.total)

    @property
    def fits(self) -> bool:
        return self.total(self.worst) <= self.machine.usable


@dataclass(frozen=True)
class Pass:
    """A forward pass of the largest micro-batch: `rows` of `length` tokens, `learned` of them response tokens."""

    rows: int
    length: int
    learned: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def largest_pass(config: RunConfig, ranks: int, longest_prompt: int) -> Pass:
    """The largest micro-batch that a rank may get: one row of the maximum length, or as many tokens in shorter rows."""
    longest, most = longest_prompt + config.max_response_length - 1, config.memory.micro_batch_tokens
    responses = max(1, config.mini_batch_size // ranks) * config.samples_per_prompt
    rows = min(responses, max(1, -(-most // longest)))
    length = min(longest, most // rows) if rows > 1 else longest
    return Pass(rows, length, rows * min(config.max_response_length, length))


def estimate_memory(config: RunConfig, models: Models, machine: Machine, longest_prompt: int) -> MemoryEstimate:
    """The memory of a rank of `machine` that runs `config` with prompts of at most `longest_prompt` tokens."""
    work = largest_pass(config, machine.ranks, longest_prompt)
    grouped = machine.ranks > 1 or config.compute.grouped
    student = shape(models.student)
    items = [*_student(config, student, grouped, machine, work, models.student)]
    items += _sampler(config, models.student, grouped, machine, longest_prompt)
    items += _teachers(config, models, grouped, machine, work)
    return MemoryEstimate(tuple(item for item in items if item.size), machine)


# ---- parts


def attention_kind(dtype: str, of: PreTrainedConfig, kind: str, wanted: str | None) -> Attention:
    """How attention runs on a device, `wanted` being compute.attention: of torch's kernels for GPUs, only the math
    kernel, which stores the weights [head, length, length], supports float32 with grouped queries (`enable_gqa` of
    `scaled_dot_product_attention`).
    """
    if wanted == "eager" or (wanted is None and shape(of).eager):
        return "eager"
    return "math" if kind == "cuda" and dtype == "float32" and held(of).grouped_query else "blockwise"


def _student(
    config: RunConfig, model: Shape, grouped: bool, machine: Machine, work: Pass, of: PreTrainedConfig
) -> list[Item]:
    compute, numbers = config.compute, model.share(machine.ranks) if grouped else model.numbers
    dtype = compute.dtype if grouped else "float32"
    size, host = BYTES[dtype], compute.offload
    learned, lora = numbers, config.student.lora
    if lora is not None:
        chosen = [
            total for name, total in model.linear if lora.target_modules == "all-linear" or name in lora.target_modules
        ]
        learned = lora.rank * sum(chosen) // (machine.ranks if grouped else 1)
        numbers += learned
    how = attention_kind(dtype, of, machine.kind, compute.attention)
    activations = saved_activations(of, rows=work.rows, length=work.length, dtype=getattr(torch, dtype), kind=how)
    layer = max(model.layers, default=0)
    items = [
        Item("weights (float32)", 4 * numbers, ALWAYS, host),
        Item("gradients (float32)", 4 * learned, ("learning", "updating"), host),
        Item("optimizer moments (float32)", 8 * learned, ALWAYS, host),
        Item("AdamW's workspace", 4 * learned if machine.kind == "cuda" else 0, ("updating",), host),
        Item(f"activations{_bound(activations)}", activations.total(compute.activation_checkpointing), ("learning",)),
        # A layer's backward pass has the gradients of its widest products at the same time.
        Item("gradients of activations", 3 * activations.largest, ("learning",)),
        Item("hidden states of responses", 3 * work.learned * model.width * size, ("scoring", "learning")),
        Item("logit chunks", _logits(config, model, work, machine.kind, learns=True), ("learning",)),
        Item("gradient of the output head", 4 * model.head, ("learning",)),
    ]
    if grouped:
        # Two layers are gathered at a time, the current and the next one; everything else stays gathered.
        items.append(Item("weights gathered by FSDP", size * (model.rest + 2 * layer), ("scoring", "learning")))
        items.append(Item("gradients before FSDP shards them", size * model.rest + (size + 4) * layer, ("learning",)))
    return items


def _bound(measured: SavedActivations | Held) -> str:
    return " (at most: without weights, its passes cannot be tried)" if measured.bounded else ""


def _logits(config: RunConfig, model: Shape, work: Pass, kind: str, *, learns: bool) -> int:
    """Bytes of all tensors [logit chunk, vocabulary] at the same time, in float32."""
    chunk = min(config.memory.logit_chunk, work.learned) * model.vocabulary
    if config.method("support") != "sampled" and learns:
        buffers = 2 if len(config.teacher.models) == 1 else 3
        return 4 * chunk * (buffers + 2 * (kind == "cuda"))  # on a GPU a chunk is processed in one piece
    copies = 1 + (kind == "cuda") * (2 if learns and has_weight(config.signal.get("entropy", 0.0)) else 1)
    return 4 * chunk * copies


def _sampler(
    config: RunConfig, of: PreTrainedConfig, grouped: bool, machine: Machine, longest_prompt: int
) -> list[Item]:
    rollout, host, model = config.rollout, config.compute.offload and machine.kind == "cuda", shape(of)
    size = BYTES.get(rollout["dtype"], 4)  # int8 weights are rounded, but stored in float32
    if config.method("rollout") == "VllmSampler":
        parallel = rollout["tensor_parallel_size"]
        weights, cache = size * model.numbers // parallel, rollout["kv_cache_bytes"]
        if cache is None:
            cache = max(0, int(rollout["gpu_memory_utilization"] * machine.memory) - weights)
        phases = ("sampling",) if rollout["sleep"] and machine.kind == "cuda" else ALWAYS
        return [
            Item(f"vLLM's weights ({rollout['dtype']})", weights, phases),
            Item("vLLM's keys and values", cache, phases),
        ]
    longest = longest_prompt + config.max_response_length
    tokens = max(longest, rollout["max_batch_tokens"])
    rows = tokens // longest
    kept = held(of)
    copied = grouped or rollout["dtype"] != "float32" or config.student.lora is not None
    phases: tuple[Phase, ...] = ("sampling",)
    return [
        Item(f"sampler's copy ({rollout['dtype']})", size * model.numbers if copied else 0, ALWAYS, host),
        Item(f"sampler's keys and values{_bound(kept)}", size * kept.token * tokens, phases, host),
        Item("sampler's states", size * kept.state * rows, phases, host),
        Item("sampler's logits", 4 * 4 * rows * model.vocabulary, phases, host),
    ]


def _teachers(config: RunConfig, models: Models, grouped: bool, machine: Machine, work: Pass) -> list[Item]:
    dtype, eight_bits, host = config.teacher.dtype, config.teacher.dtype == "int8", config.compute.offload
    products = "bfloat16" if eight_bits else dtype
    size = BYTES[products]
    shapes = [shape(teacher) for teacher in models.teachers]

    sharded = grouped and engine(config).loads == "here"

    def weights_of(model: Shape) -> int:
        ranks = machine.ranks if sharded else 1
        if not eight_bits:
            return size * model.share(ranks)
        # A byte for each and a scale for each channel, not sharded.
        return model.matrices + size * (model.channels + model.share(ranks) - model.matrices // ranks)

    together = max(models.together, key=lambda some: sum(weights_of(shapes[index]) for index in some))
    most = sum(weights_of(shapes[index]) for index in together)
    items = [Item(f"teachers' weights ({dtype}), {len(together)} at once", most, ALWAYS, host)]
    if (settings := config.teacher.vllm) is not None:
        cache = settings.kv_cache_bytes
        share = int((settings.gpu_memory_utilization or 0) * machine.memory)
        items.append(Item("teachers' keys and values", max(0, share - most) if cache is None else cache, ALWAYS))
    scorers = list(models.teachers) if engine(config).loads == "here" else []
    if models.anchor is not None:
        scorers.append(models.anchor)
        items.append(Item(f"anchor's weights ({dtype})", weights_of(shape(models.anchor)), ALWAYS, host))
    if grouped:
        sizes = [(model.rest, model.layers) for model in map(shape, scorers)]
        gathered = max((size * (rest + 2 * max(layers, default=0)) for rest, layers in sizes), default=0)
        items.append(Item("teachers' weights gathered by FSDP", gathered, ("scoring",)))
    # The student scores its own responses too.
    widths = [(of, products) for of in scorers] + [(models.student, config.compute.dtype)]
    widest = max(_forward(of, precision, machine, work, config.compute.attention) for of, precision in widths)
    items.append(Item("a scorer's forward pass", widest, ("scoring",)))
    student = shape(models.student)
    items.append(
        Item("logit chunks of scores", _logits(config, student, work, machine.kind, learns=False), ("scoring",))
    )
    if config.uses_vocabulary or config.method("support") != "sampled":
        heads = sum(size * shapes[index].head for index in together) if grouped else 0
        items.append(Item("teachers' output heads, gathered", heads, ("learning",)))
        responses = max(1, config.batch_size // machine.ranks) * config.samples_per_prompt
        states = sum(shapes[index].width for index in together) * responses * config.max_response_length * size
        items.append(Item("teachers' hidden states", states, ("scoring", "learning"), host=True))
    return items


def _forward(of: PreTrainedConfig, dtype: str, machine: Machine, work: Pass, wanted: str | None) -> int:
    """Peak bytes of a forward pass without gradients: a layer's products, or its attention."""
    model = shape(of)
    products = work.tokens * (3 * model.inner + 4 * model.width) * BYTES[dtype]
    if attention_kind(dtype, of, machine.kind, wanted) == "blockwise":
        return products
    return products + 3 * 4 * work.rows * held(of).heads * work.length**2
