"""Sampling by transformers' own generation: slower, and right for every state that a family may have.

No row is padded on the left, which not every state survives. The rows of a batch are read together up to the length of
the shortest prompt; from there on, while others are sampled, longer prompts are fed token by token.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from opd.data.batch import pad
from opd.rollout.draws import Draws, Request

SPREAD = 4  # the prompts of a batch differ by at most one part in 4 of a response, because feeding them costs steps


class Generation:
    """Samples all rows of a rollout by `generate`, with the interface of `ContinuousBatch`.

    Without `cached`, every step reads the whole text again.
    """

    def __init__(self, request: Request, *, cached: bool):
        # A view of the same weights: `generate` would fill what we do not set (penalties, forced tokens) from the
        # checkpoint's own generation config.
        self.model: Any = copy.copy(request.model)
        self.model.generation_config = GenerationConfig()
        self.draws, self.cached = Draws(request), cached
        self.sampling, self.pad_id, self.max_batch_tokens = request.sampling, request.pad_id, request.max_batch_tokens
        self.texts = [list(prompt.token_ids) for prompt in request.prompts for _ in range(self.sampling.num_samples)]

    def run(self) -> Draws:
        """Draws all rows to their ends."""
        for rows in self._batches():
            self._generate(rows)
        return self.draws

    def _batches(self) -> Iterator[list[int]]:
        """Rows whose prompts are of similar length."""
        waiting = sorted(range(len(self.texts)), key=lambda row: -len(self.texts[row]))
        while waiting:
            longest = len(self.texts[waiting[0]])
            most = max(1, self.max_batch_tokens // (longest + self.sampling.max_tokens))
            least = longest - self.sampling.max_tokens // SPREAD
            taken = [row for row in waiting[:most] if len(self.texts[row]) >= least]
            waiting = waiting[len(taken) :]
            yield taken

    def _generate(self, rows: list[int]) -> None:
        device = self.model.device
        prompts, there = (each.to(device) for each in pad([self.texts[row] for row in rows], 0, "right"))
        chooser = _Chooser(self, torch.tensor(rows, device=device), prompts, there.sum(1))
        shortest = min(len(self.texts[row]) for row in rows)
        config = GenerationConfig(
            max_new_tokens=prompts.shape[1] - shortest + self.sampling.max_tokens,
            do_sample=False,
            use_cache=self.cached,
        )
        # `generate` rounds logits to float32 before it hands them on.
        hook = self.model.register_forward_hook(chooser.see)
        try:
            self.model.generate(
                prompts[:, :shortest],
                generation_config=config,
                logits_processor=LogitsProcessorList([chooser]),
                stopping_criteria=StoppingCriteriaList([_AllEnded(chooser)]),
            )
        finally:
            hook.remove()


class _Chooser(LogitsProcessor):
    """Chooses each row's next token for `generate`: of its prompt, or drawn, or padding after its end."""

    def __init__(
        self,
        batch: Generation,
        rows: Int[Tensor, " rows"],
        prompts: Int[Tensor, "rows length"],
        lengths: Int[Tensor, " rows"],
    ):
        self.batch, self.rows, self.prompts, self.lengths = batch, rows, prompts, lengths
        self.ended = torch.zeros_like(rows, dtype=torch.bool)

    def see(self, model: Any, inputs: Any, output: Any) -> None:
        self.logits = output.logits[:, -1]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore
        batch, time = self.batch, input_ids.shape[1] - self.lengths
        token = torch.full_like(self.rows, batch.pad_id)
        reading = time < 0
        if input_ids.shape[1] < self.prompts.shape[1]:
            token[reading] = self.prompts[reading, input_ids.shape[1]]
        own = (~reading & ~self.ended).nonzero()[:, 0]
        if len(own):
            place = self.rows[own] * batch.sampling.max_tokens + time[own]
            branch = torch.arange(len(own), device=own.device)
            token[own], active = batch.draws.draw(self.logits[own], branch, place)
            self.ended[own] = ~active
        return torch.zeros_like(scores).scatter_(1, token[:, None], 1)


class _AllEnded(StoppingCriteria):
    def __init__(self, chooser: _Chooser):
        self.chooser = chooser

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # pyright: ignore
        return self.chooser.ended
