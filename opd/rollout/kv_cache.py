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

# A window is at least so wide, if need be with masked columns: on fewer, torch's softmax and small products on the CPU
# leave their vector code and take four times as long.
NARROWEST = 16


@dataclass
class Window:
    """The part in use: slots [0, rows), columns [first, end)."""

    slots: int
    capacity: int
    rows: int
    first: int
    end: int


class Memory:
    """Buffers that caches reuse one after another: allocating fresh pages can take longer than a tiny model's steps."""

    def __init__(self):
        self.buffers: list[Tensor] = []
        self.taken = 0

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uninitialised, of the type and on the device of `like`."""
        size, index = math.prod(shape), self.taken
        self.taken += 1
        if index == len(self.buffers):
            self.buffers.append(like.new_empty(size))
        found = self.buffers[index]
        if len(found) < size or found.dtype != like.dtype or found.device != like.device:
            found = self.buffers[index] = like.new_empty(size)
        return found[:size].view(shape)


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, each [slots, heads, capacity, head size]."""

    keys: Tensor  # pyright: ignore
    values: Tensor  # pyright: ignore

    def __init__(self, window: Window, memory: Memory):
        super().__init__()
        self.window, self.memory = window, memory

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = self.window.slots, key_states.shape[1], self.window.capacity
        self.keys = self.memory.take((*shape, key_states.shape[3]), key_states)  # pyright: ignore
        self.values = self.memory.take((*shape, value_states.shape[3]), value_states)  # pyright: ignore
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

    Overwrites what another cache holds in the same `memory`.
    """

    layers: list[SlotLayer]  # pyright: ignore

    def __init__(self, slots: int, capacity: int, device: torch.device, memory: Memory | None = None):
        capacity += NARROWEST
        self.window = Window(slots=slots, capacity=capacity, rows=0, first=0, end=0)
        self.start = torch.zeros(slots, dtype=torch.long, device=device)
        self.columns = torch.arange(capacity, device=device)
        self.ragged = False
        self.memory = memory or Memory()
        self.memory.taken = 0
        super().__init__(layer_class_to_replicate=partial(SlotLayer, self.window, self.memory))  # pyright: ignore

    def first_layers(self, count: int) -> list[SlotLayer]:
        """So many layers, made where they are not there yet."""
        while len(self.layers) < count:
            self.layers.append(SlotLayer(self.window, self.memory))
        return self.layers

    def lengths(self) -> Int[Tensor, " rows"]:
        """How many tokens each row holds: the position of its next."""
        return self.window.end - self.start[: self.window.rows]

    def mask(self, new: int) -> Bool[Tensor, "rows columns"] | None:
        """True where a row may look, over the window and `new` columns to come; None where every row sees them all."""
        window = self.window
        if not self.ragged:
            return None
        return self.columns[window.first : window.end + new] >= self.start[: window.rows, None]

    def open(self, lengths: Int[Tensor, " rows"], width: int) -> None:
        """Begin with one row for each length, left-padded to `width` columns, which the next forward will fill."""
        window = self.window
        window.rows, window.first, window.end = len(lengths), 0, max(0, NARROWEST - width)
        self.start[: len(lengths)] = window.end + width - lengths
        self.ragged = window.end > 0 or bool((lengths != width).any())

    def advance(self, new: int) -> None:
        """Every layer has written this many columns."""
        self.window.end += new

    def append(self, source: "SlotCache", slots: Int[Tensor, " new"]) -> None:
        """Give the next slots a copy of these slots of `source`, aligned at its right edge with this cache's."""
        window, width = self.window, source.window.end
        if window.rows == 0:
            window.first, window.end = 0, width
        new, left = slice(window.rows, window.rows + len(slots)), window.end - width
        for layer, given in zip(self.first_layers(len(source.layers)), source.layers, strict=True):
            if not given.is_initialized:
                continue  # a layer that uses another's
            if not layer.is_initialized:
                layer.lazy_initialization(given.keys, given.values)
            for mine, theirs in ((layer.keys, given.keys), (layer.values, given.values)):
                mine[new, :, :left] = 0
                mine[new, :, left : window.end] = theirs[slots, :, :width]
        self.start[new] = source.start[slots] + left
        window.rows = new.stop

    def copy(self, source: Int[Tensor, " copied"], target: Int[Tensor, " copied"]) -> None:
        """Copy slots to others."""
        for layer in self._written():
            for mine in (layer.keys, layer.values):
                mine[target, :, : self.window.end] = mine[source, :, : self.window.end]
        self.start[target] = self.start[source]

    def narrow(self, slots: Int[Tensor, " used"]) -> None:
        """Begin the window at the first column that one of these slots, all that are in use, holds."""
        low, high = torch.stack(self.start[slots].aminmax()).tolist()
        self.window.first = max(0, min(low, self.window.end - NARROWEST))
        self.ragged = high != self.window.first

    def make_room(self, slots: Int[Tensor, " used"]) -> None:
        """If the last column is taken, move what these slots hold to the left edge; they must leave room there."""
        window = self.window
        if window.end < window.capacity:
            return
        self.narrow(slots)
        width = window.end - window.first
        for layer in self._written():
            for mine in (layer.keys, layer.values):
                mine[: window.rows, :, :width] = mine[: window.rows, :, window.first : window.end].clone()
        self.start -= window.first
        window.first, window.end = 0, width

    def _written(self) -> list[SlotLayer]:
        return [layer for layer in self.layers if layer.is_initialized]
