"""Continuous batching: rows join after their prompt's prefill, decode a token a step, and leave when they end.

A batch holds as many rows as its memory allows. Common prefixes are computed once: the samples of a prompt share a
branch while they agree, which for a trained model is long; a branch whose rows draw different tokens splits.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from opd.data.batch import pad
from opd.rollout.draws import Draws, Request
from opd.rollout.fused_forward import FusedForward
from opd.rollout.kv_cache import MIN_COLUMNS, BufferPool, SlotCache

ADMIT_SHARE = 8  # waiting rows join once one slot in 8 is free, because a prefill costs time
COMPACT_SHARE = 8  # slots are compacted once one in 8 has no branch, because copying costs time
TOKEN_BITS = 32


@dataclass(frozen=True)
class Prefilled:
    """Prefilled prompts, and the waiting rows that continue them, as (row of the rollout, slot of `cache`)."""

    cache: SlotCache
    logits: Float[Tensor, "prompts vocab"]
    rows: list[tuple[int, int]]


class ContinuousBatch:
    """Samples all rows of a rollout. A row is one response; a branch is the common prefix of one or more rows."""

    def __init__(self, request: Request, *, fused: bool, pool: BufferPool | None):
        model, prompts, max_tokens = request.model, request.prompts, request.sampling.max_tokens
        self.draws, device = Draws(request), model.device
        self.prompts, self.sampling, self.pad_id = prompts, request.sampling, request.pad_id
        # Longest first: whatever joins later fits in the columns in use, and prompts read together are of one length.
        self.waiting = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].token_ids))
        self.widest = len(prompts[self.waiting[0]].token_ids) + max_tokens
        room = max(1, request.max_batch_tokens // (self.widest + MIN_COLUMNS))
        self.slots = min(len(self.draws.tokens), room)
        self.cache = SlotCache(self.slots, self.widest, device, pool)
        self.forward: Callable[[Tensor, Tensor, SlotCache], Tensor] = (
            FusedForward(model, self.widest) if fused else partial(model_forward, model)
        )
        self.prefilled: Prefilled | None = None
        # For each row: the slot of its branch, its newest token, the place of its next one.
        self.rows = torch.zeros((0, 3), dtype=torch.long, device=device)
        # For each slot: its branch's newest token.
        self.newest = torch.zeros(0, dtype=torch.long, device=device)

    def run(self) -> Draws:
        """Draws all rows to their ends."""
        while self._admit():
            self._decode()
        return self.draws

    def _admit(self) -> bool:
        """Admit waiting rows if enough slots are free; → whether there is anything to decode."""
        while (free := self.slots - len(self.rows)) and (free == self.slots or free >= self.slots // ADMIT_SHARE):
            if self.prefilled is None or not self.prefilled.rows:
                if not self.waiting:
                    break
                self.prefilled = self._prefill()
            self._admit_rows(self.prefilled, free)
        return len(self.rows) > 0

    def _prefill(self) -> Prefilled:
        """Prefill the next prompts, as many as could fill every slot."""
        samples = self.sampling.num_samples
        count = max(1, self.slots // samples)
        read, self.waiting = self.waiting[:count], self.waiting[count:]
        tokens, mask = pad([list(self.prompts[index].token_ids) for index in read], self.pad_id, "left")
        tokens, mask = tokens.to(self.rows.device), mask.to(self.rows.device)
        cache = SlotCache(len(read), tokens.shape[1], self.rows.device)
        cache.open(mask.sum(1), tokens.shape[1])
        logits = self.forward(tokens, (mask.cumsum(1) - 1).clamp(min=0), cache)
        cache.advance(tokens.shape[1])
        rows = [(index * samples + sample, slot) for slot, index in enumerate(read) for sample in range(samples)]
        return Prefilled(cache, logits, rows)

    def _admit_rows(self, prefilled: Prefilled, free: int) -> None:
        """Admit the next `free` prefilled rows, a branch for each prompt, and sample their first tokens."""
        joining = torch.tensor(prefilled.rows[:free], device=self.rows.device)
        del prefilled.rows[:free]
        self._split_branches(compact=True)
        prompt, branch = torch.unique(joining[:, 1], return_inverse=True)
        slot, place = self.cache.window.rows + branch, joining[:, 0] * self.sampling.max_tokens
        rows = torch.stack((slot, slot, place), 1)
        self.cache.append(prefilled.cache, prompt)
        self.rows = torch.cat((self.rows, self._sample_next(rows, branch, prefilled.logits[prompt])))
        self._split_branches(compact=True)

    def _decode(self) -> None:
        """Feed every branch its newest token and sample the next one of every row."""
        slot = self.rows[:, 0]
        self.cache.make_room(slot)
        # A slot without a branch may be past every position.
        position = self.cache.lengths().clamp_(max=self.widest - 1)
        logits = self.forward(self.newest[:, None], position[:, None], self.cache)
        self.cache.advance(1)
        self.rows = self._sample_next(self.rows, slot, logits)
        self._split_branches(compact=False)

    def _sample_next(
        self, rows: Int[Tensor, "rows 3"], branch: Int[Tensor, " rows"], logits: Float[Tensor, "branches vocab"]
    ) -> Int[Tensor, "active 3"]:
        """Sample and store the next token of every row; → the rows that are not finished."""
        _, newest, place = rows.unbind(1)
        token, active = self.draws.draw(logits, branch, place)
        newest.copy_(token)
        place += 1
        return rows[active]

    def _split_branches(self, *, compact: bool) -> None:
        """Split branches whose rows drew different tokens: the first token keeps the slot, each other gets a copy.

        Slots without a branch are removed if they are many, or with `compact`.
        """
        if not len(self.rows):
            self.cache.window.rows = 0
            return
        slot, token = self.rows[:, 0], self.rows[:, 1]
        branch, index = torch.unique((slot << TOKEN_BITS) + token, return_inverse=True)
        source, used, rows = branch >> TOKEN_BITS, len(branch), self.cache.window.rows
        stays = torch.ones_like(source, dtype=torch.bool)
        stays[1:] = source[1:] != source[:-1]
        compact = compact or (rows - used) * COMPACT_SHARE >= rows
        if compact:
            stays &= source < used
        slots = used if compact else max(rows, used)
        moving = (~stays).nonzero()[:, 0]
        target = source
        if len(moving):
            free = torch.ones(slots, dtype=torch.bool, device=slot.device)
            free[source[stays]] = False
            target = source.index_copy(0, moving, free.nonzero()[: len(moving), 0])
            self.cache.copy(source[moving], target[moving])
        self.cache.window.rows = slots
        if compact:
            self.cache.narrow(target)
        self.newest = torch.zeros(slots, dtype=torch.long, device=slot.device)
        self.newest[target] = branch & ((1 << TOKEN_BITS) - 1)
        self.rows[:, 0] = target[index]


def model_forward(
    model: PreTrainedModel, tokens: Int[Tensor, "rows time"], positions: Int[Tensor, "rows time"], cache: SlotCache
) -> Float[Tensor, "rows vocab"]:
    """Logits after the last of `tokens`, by any causal model; adds their keys and values to the cache."""
    mask = cache.mask(tokens.shape[1])
    cache.ensure_layers(model.config.get_text_config().num_hidden_layers)
    optional = {"position_ids": positions, "logits_to_keep": 1}
    known = inspect.signature(model.forward).parameters
    output = model(
        input_ids=tokens,
        attention_mask=None if mask is None else mask.long(),
        past_key_values=cache,
        use_cache=True,
        **{name: value for name, value in optional.items() if name in known},
    )
    return output.logits[:, -1]
