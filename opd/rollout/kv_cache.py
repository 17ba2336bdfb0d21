"""Keys and values of the responses being sampled, written in place; a `Cache` that transformers' causal models take.

Every row writes its next key at the same column, `window.end`, so that one step is one slice assignment. A row that
joins later starts at a later column; what lies left of its start is masked, as transformers masks left padding:

    column         0 . first           end . capacity
    slot 0 (old)   . . p p p r r r r r |
    slot 1 (new)   . . . . . . p p p r |          p prompt, r response, . masked or unused

Positions are the row's own (its first prompt token is 0), so neither joining nor moving a row changes its numbers.
In a slot in use, all columns before `end` are written: a masked weight of 0 times an uninitialised NaN is NaN.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# The minimum width of a window, padded with masked columns: on fewer, torch's softmax and small products on the CPU are
# not vectorised and take four times as long.
MIN_COLUMNS = 16


@dataclass
class Window:
    """The part in use: slots [0, rows), columns [first, end)."""

    slots: int
    capacity: int
    rows: int
    first: int
    end: int


class BufferPool:
    """Buffers that caches reuse one after another: allocating fresh pages can take longer than a tiny model's steps."""

    def __init__(self):
        self.buffers: list[Tensor] = []
        self.num_allocated = 0

    def allocate(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor of the type and on the device of `like`."""
        size, index = math.prod(shape), self.num_allocated
        self.num_allocated += 1
        if index == len(self.buffers):
            self.buffers.append(like.new_empty(size))
        buffer = self.buffers[index]
        if len(buffer) < size or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = self.buffers[index] = like.new_empty(size)
        return buffer[:size].view(shape)


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, each [slots, heads, capacity, head size]."""

    keys: Tensor  # pyright: ignore
    values: Tensor  # pyright: ignore

    def __init__(self, window: Window, pool: BufferPool):
        super().__init__()
        self.window, self.pool = window, pool

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = self.window.slots, key_states.shape[1], self.window.capacity
        self.keys = self.pool.allocate((*shape, key_states.shape[3]), key_states)  # pyright: ignore
        self.values = self.pool.allocate((*shape, value_states.shape[3]), value_states)  # pyright: ignore
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write the columns from `end` on; → the keys and values of the window with them, as views."""
        window, end = self.window, self.window.end + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys[:, :, : window.end] = 0
            self.values[:, :, : window.end] = 0
        self.keys[: window.rows, :, window.end : end] = key_states
        self.values[: window.rows, :, window.end : end] = value_states
        return self.keys[: window.rows, :, window.first : end], self.values[: window.rows, :, window.first : end]

    def get_seq_length(self) -> int:
        return self.window.end - self.window.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """The cache of `slots` rows of up to `capacity` tokens. `start` is a row's first column.

    Overwrites what another cache holds in the same `pool`.
    """

    layers: list[SlotLayer]  # pyright: ignore

    def __init__(self, slots: int, capacity: int, device: torch.device, pool: BufferPool | None = None):
        capacity += MIN_COLUMNS
        self.window = Window(slots=slots, capacity=capacity, rows=0, first=0, end=0)
        self.start = torch.zeros(slots, dtype=torch.long, device=device)
        self.columns = torch.arange(capacity, device=device)
        self.ragged = False
        self.pool = pool or BufferPool()
        self.pool.num_allocated = 0
        super().__init__(layer_class_to_replicate=partial(SlotLayer, self.window, self.pool))  # pyright: ignore

    def ensure_layers(self, count: int) -> list[SlotLayer]:
        """The first `count` layers; missing ones are created."""
        while len(self.layers) < count:
            self.layers.append(SlotLayer(self.window, self.pool))
        return self.layers

    def lengths(self) -> Int[Tensor, " rows"]:
        """The number of tokens of each row: the position of its next one."""
        return self.window.end - self.start[: self.window.rows]

    def mask(self, new: int) -> Bool[Tensor, "rows columns"] | None:
        """True where a row may attend, over the window and `new` further columns; None if every row attends to all."""
        window = self.window
        if not self.ragged:
            return None
        return self.columns[window.first : window.end + new] >= self.start[: window.rows, None]

    def open(self, lengths: Int[Tensor, " rows"], width: int) -> None:
        """Start with one row for each length, left-padded to `width` columns, which the next forward fills."""
        window = self.window
        window.rows, window.first, window.end = len(lengths), 0, max(0, MIN_COLUMNS - width)
        self.start[: len(lengths)] = window.end + width - lengths
        self.ragged = window.end > 0 or bool((lengths != width).any())

    def advance(self, new: int) -> None:
        """Counts `new` columns that every layer has written."""
        self.window.end += new

    def append(self, source: "SlotCache", slots: Int[Tensor, " new"]) -> None:
        """Append copies of these slots of `source`, right-aligned with this cache."""
        window, width = self.window, source.window.end
        if window.rows == 0:
            window.first, window.end = 0, width
        new, left = slice(window.rows, window.rows + len(slots)), window.end - width
        for layer, other in zip(self.ensure_layers(len(source.layers)), source.layers, strict=True):
            if not other.is_initialized:
                continue  # this layer shares another layer's keys and values
            if not layer.is_initialized:
                layer.lazy_initialization(other.keys, other.values)
            for own, theirs in ((layer.keys, other.keys), (layer.values, other.values)):
                own[new, :, :left] = 0
                own[new, :, left : window.end] = theirs[slots, :, :width]
        self.start[new] = source.start[slots] + left
        window.rows = new.stop

    def copy(self, source: Int[Tensor, " copied"], target: Int[Tensor, " copied"]) -> None:
        """Copy slots `source` to slots `target`."""
        for layer in self._initialized_layers():
            for own in (layer.keys, layer.values):
                own[target, :, : self.window.end] = own[source, :, : self.window.end]
        self.start[target] = self.start[source]

    def narrow(self, slots: Int[Tensor, " used"]) -> None:
        """Start the window at the first column of `slots`, which must be all slots in use."""
        low, high = torch.stack(self.start[slots].aminmax()).tolist()
        self.window.first = max(0, min(low, self.window.end - MIN_COLUMNS))
        self.ragged = high != self.window.first

    def make_room(self, slots: Int[Tensor, " used"]) -> None:
        """If the last column is used, move these slots to the left edge; they must leave room there."""
        window = self.window
        if window.end < window.capacity:
            return
        self.narrow(slots)
        width = window.end - window.first
        for layer in self._initialized_layers():
            for own in (layer.keys, layer.values):
                own[: window.rows, :, :width] = own[: window.rows, :, window.first : window.end].clone()
        self.start -= window.first
        window.first, window.end = 0, width

    def _initialized_layers(self) -> list[SlotLayer]:
        return [layer for layer in self.layers if layer.is_initialized]
