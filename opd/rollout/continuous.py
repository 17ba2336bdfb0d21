"""The batch being sampled: rows join once their prompt has been read, are fed a token a step, and leave at their end.

A batch holds as many rows as its memory allows. What rows have in common is computed once: the samples of a prompt
share a branch while they agree, which for a trained model is long; a branch whose rows draw different tokens splits.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from opd.data.batch import Prompt, Sampling, pad
from opd.rollout.choice import choose
from opd.rollout.kv_cache import NARROWEST, Memory, SlotCache
from opd.rollout.lean import LeanForward

JOIN = 8  # waiting rows join once one slot in so many is free: reading their prompts is not free
CLOSE = 8  # gaps that ended branches leave are closed once they are one slot in so many: moving is not free
TOKEN_BITS = 32


@dataclass(frozen=True)
class Ready:
    """Prompts that have been read, and the rows (row of the rollout, slot of `cache`) that wait to continue them."""

    cache: SlotCache
    logits: Float[Tensor, "prompts vocab"]
    rows: list[tuple[int, int]]


class ContinuousBatch:
    """Runs every row of a rollout to its end. A row is one response; a branch is what one or more rows have so far."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        uniform: Float[Tensor, "batch time"],
        *,
        stop_ids: Sequence[int],
        pad_id: int,
        max_batch_tokens: int,
        lean: bool,
        memory: Memory,
    ):
        device, total, most = model.device, len(uniform), sampling.max_tokens
        self.prompts, self.sampling, self.pad_id = prompts, sampling, pad_id
        # Longest first: whatever joins later fits in the columns in use, and prompts read together are of one length.
        self.waiting = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].token_ids))
        self.widest = len(prompts[self.waiting[0]].token_ids) + most
        self.slots = min(total, max(1, max_batch_tokens // (self.widest + NARROWEST)))
        self.cache = SlotCache(self.slots, self.widest, device, memory)
        self.forward: Callable[[Tensor, Tensor, SlotCache], Tensor] = (
            LeanForward(model, self.widest) if lean else partial(model_forward, model)
        )
        self.ready: Ready | None = None
        self.stops = torch.tensor(stop_ids, device=device)
        self.uniform = uniform.to(device).view(-1)
        self.tokens = torch.full((total, most), -1, device=device)
        self.logp = torch.zeros((total, most), dtype=uniform.dtype, device=device)
        # Of each row: the slot of its branch, its newest token, the place in `tokens` of its next, its last place.
        self.rows = torch.zeros((0, 4), dtype=torch.long, device=device)
        # Of each slot: its branch's newest token.
        self.newest = torch.zeros(0, dtype=torch.long, device=device)

    def run(self) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """→ (tokens, mask of the responses, log-probabilities as `choose` gave them)."""
        while self._admit():
            self._decode()
        return self.tokens, self.tokens >= 0, self.logp

    def _admit(self) -> bool:
        """Let waiting rows in, if there are enough of them and of free slots; → whether there is anything to decode."""
        while (free := self.slots - len(self.rows)) and (free == self.slots or free >= self.slots // JOIN):
            if self.ready is None or not self.ready.rows:
                if not self.waiting:
                    break
                self.ready = self._read()
            self._join(self.ready, free)
        return len(self.rows) > 0

    def _read(self) -> Ready:
        """Read the next prompts, as many as could fill every slot."""
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
        return Ready(cache, logits, rows)

    def _join(self, ready: Ready, free: int) -> None:
        """Let the next `free` rows that are ready in, a branch for each prompt, and draw their first tokens."""
        joining = torch.tensor(ready.rows[:free], device=self.rows.device)
        del ready.rows[:free]
        self._settle(close=True)
        prompt, branch = torch.unique(joining[:, 1], return_inverse=True)
        slot, place = self.cache.window.rows + branch, joining[:, 0] * self.sampling.max_tokens
        rows = torch.stack((slot, slot, place, place + self.sampling.max_tokens - 1), 1)
        self.cache.append(ready.cache, prompt)
        self.rows = torch.cat((self.rows, self._draw(rows, branch, ready.logits[prompt])))
        self._settle(close=True)

    def _decode(self) -> None:
        """Feed every branch its newest token and draw the next of every row."""
        slot = self.rows[:, 0]
        self.cache.make_room(slot)
        # A slot without a branch may be past every position.
        position = self.cache.lengths().clamp_(max=self.widest - 1)
        logits = self.forward(self.newest[:, None], position[:, None], self.cache)
        self.cache.advance(1)
        self.rows = self._draw(self.rows, slot, logits)
        self._settle(close=False)

    def _draw(
        self, rows: Int[Tensor, "rows 4"], branch: Int[Tensor, " rows"], logits: Float[Tensor, "branches vocab"]
    ) -> Int[Tensor, "going 4"]:
        """Draw and record the next token of every row; → the rows that go on."""
        _, newest, place, last = rows.unbind(1)
        token, logp = choose(logits, branch, self.uniform[place], self.sampling)
        self.tokens.view(-1)[place] = token
        self.logp.view(-1)[place] = logp
        # A row whose logits are broken ends here too; the caller finds its logp.
        going = (token[:, None] != self.stops).all(1) & (place != last) & logp.isfinite()
        newest.copy_(token)
        place += 1
        return rows[going]

    def _settle(self, *, close: bool) -> None:
        """Give rows of one slot that drew different tokens a slot for each token: the first stays, others take a copy.

        Gaps that branches without rows leave are closed if they are many, or with `close`.
        """
        if not len(self.rows):
            self.cache.window.rows = 0
            return
        slot, token = self.rows[:, 0], self.rows[:, 1]
        branch, index = torch.unique((slot << TOKEN_BITS) + token, return_inverse=True)
        source, used, rows = branch >> TOKEN_BITS, len(branch), self.cache.window.rows
        stays = torch.ones_like(source, dtype=torch.bool)
        stays[1:] = source[1:] != source[:-1]
        close = close or (rows - used) * CLOSE >= rows
        if close:
            stays &= source < used
        slots = used if close else max(rows, used)
        moving = (~stays).nonzero()[:, 0]
        target = source
        if len(moving):
            free = torch.ones(slots, dtype=torch.bool, device=slot.device)
            free[source[stays]] = False
            target = source.index_copy(0, moving, free.nonzero()[: len(moving), 0])
            self.cache.copy(source[moving], target[moving])
        self.cache.window.rows = slots
        if close:
            self.cache.narrow(target)
        self.newest = torch.zeros(slots, dtype=torch.long, device=slot.device)
        self.newest[target] = branch & ((1 << TOKEN_BITS) - 1)
        self.rows[:, 0] = target[index]


def model_forward(
    model: PreTrainedModel, tokens: Int[Tensor, "rows time"], positions: Int[Tensor, "rows time"], cache: SlotCache
) -> Float[Tensor, "rows vocab"]:
    """Logits after the last of `tokens`, by any causal model; the cache then holds the keys and values of them all."""
    mask = cache.mask(tokens.shape[1])
    cache.first_layers(model.config.get_text_config().num_hidden_layers)
    wishes = {"position_ids": positions, "logits_to_keep": 1}
    known = inspect.signature(model.forward).parameters
    output = model(
        input_ids=tokens,
        attention_mask=None if mask is None else mask.long(),
        past_key_values=cache,
        use_cache=True,
        **{name: value for name, value in wishes.items() if name in known},
    )
    return output.logits[:, -1]
