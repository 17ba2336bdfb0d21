"""Sampling by transformers' own generation: slower, and right for every state that a family may have.

No row is padded on the left, which not every state survives. The rows of a batch are read together up to the length of
the shortest prompt; from there on, while others are sampled, longer prompts are fed token by token.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from opd.data.batch import Prompt, Sampling, pad
from opd.rollout.token_sampling import sample_tokens

SPREAD = 4  # the prompts of a batch differ by at most one part in 4 of a response, because feeding them costs steps


class Generation:
    """Samples all rows of a rollout by `generate`, with the interface of `ContinuousBatch`.

    Without `cached`, every step reads the whole text again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        uniform: Float[Tensor, "batch time"],
        *,
        number: torch.dtype,
        stop_ids: Sequence[int],
        pad_id: int,
        max_batch_tokens: int,
        cached: bool,
    ):
        # A view of the same weights: `generate` would fill what we do not set (penalties, forced tokens) from the
        # checkpoint's own generation config.
        self.model: Any = copy.copy(model)
        self.model.generation_config = GenerationConfig()
        self.sampling, self.cached, self.max_batch_tokens, self.pad_id = sampling, cached, max_batch_tokens, pad_id
        self.texts = [list(prompt.token_ids) for prompt in prompts for _ in range(sampling.num_samples)]
        self.stops = torch.tensor(stop_ids, device=model.device)
        self.uniform = uniform.to(model.device)
        self.tokens = torch.full(uniform.shape, -1, device=model.device)
        self.logp = torch.zeros(uniform.shape, dtype=number, device=model.device)

    def run(self) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """→ (tokens, mask of the responses, log-probabilities as `sample_tokens` gave them)."""
        for rows in self._batches():
            self._generate(rows)
        return self.tokens, self.tokens >= 0, self.logp

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
        prompts, there = (each.to(self.stops.device) for each in pad([self.texts[row] for row in rows], 0, "right"))
        draws = _Draws(self, torch.tensor(rows, device=self.stops.device), prompts, there.sum(1))
        shortest = min(len(self.texts[row]) for row in rows)
        config = GenerationConfig(
            max_new_tokens=prompts.shape[1] - shortest + self.sampling.max_tokens,
            do_sample=False,
            use_cache=self.cached,
        )
        # `generate` rounds logits to float32 before it hands them on.
        hook = self.model.register_forward_hook(draws.see)
        try:
            self.model.generate(
                prompts[:, :shortest],
                generation_config=config,
                logits_processor=LogitsProcessorList([draws]),
                stopping_criteria=StoppingCriteriaList([_AllEnded(draws)]),
            )
        finally:
            hook.remove()


class _Draws(LogitsProcessor):
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
            row, time = self.rows[own], time[own]
            drawn, logp = sample_tokens(
                self.logits[own], torch.arange(len(own), device=own.device), batch.uniform[row, time], batch.sampling
            )
            batch.tokens[row, time], batch.logp[row, time], token[own] = drawn, logp.to(batch.logp), drawn
            # A row whose logits are not finite ends here too; the caller checks its logp.
            last = (drawn[:, None] == batch.stops).any(1) | (time == batch.sampling.max_tokens - 1)
            self.ended[own] = last | ~logp.isfinite()
        return torch.zeros_like(scores).scatter_(1, token[:, None], 1)


class _AllEnded(StoppingCriteria):
    def __init__(self, draws: _Draws):
        self.draws = draws

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # pyright: ignore
        return self.draws.ended
