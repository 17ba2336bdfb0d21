"""Prompts → responses: the sampler that rollouts and evaluation share, on transformers models."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from opd.data.batch import Prompt, Rollout, Sampling, pad
from opd.errors import UserError
from opd.model.load import max_positions
from opd.model.sharded import Root, uncompiled
from opd.printable import say
from opd.rollout.draws import Draws, Request
from opd.rollout.protocol import StudentSampler
from opd.rollout.replica import Precision, refresh, replicate
from opd.rollout.ways import choose


class TransformersSampler(StudentSampler):
    """Samples with a transformers model, in this process, on the device the model is on: by continuous batching where
    it caches keys and values alone, else by transformers' own generation.

    Args:
        root: the learner, a causal model.
        stop_ids: a response ends with the first of these, which belongs to it.
        pad_id: what the rollout holds where a mask is False.
        dtype: "float32" samples with the learner's own modules, as they are at each call. "bfloat16" and "int8" sample
            with a copy, as the learner was at the last `sync`; see `opd.rollout.replica`.
        max_batch_tokens: the most tokens that are cached at a time, counting each row at the longest it may become.
            The larger the faster; it changes no token (up to rounding in the logits).
    """

    def __init__(self, root: Root, *, stop_ids: Sequence[int], pad_id: int, dtype: Precision, max_batch_tokens: int):
        model = root.model
        config = model.config.get_text_config()
        check_stops(stop_ids, config.vocab_size, name_of(model))
        self.learner = model
        self.dtype: Precision = dtype
        self.stop_ids, self.pad_id, self.max_batch_tokens = tuple(stop_ids), pad_id, max_batch_tokens
        self.model = replicate(model, dtype)
        self.sync()
        with _sampling(self.model):
            self.way = choose(self.model, name_of(model))
        if self.way.slow and root.ranks.main:
            say(
                f"{name_of(model)} is sampled by transformers' own generation, {self.way.slow}; rollout=vllm is faster "
                "where vLLM has this family"
            )

    def sync(self) -> None:
        if self.model is not self.learner:
            refresh(self.model, self.learner, self.dtype)

    def close(self) -> None:
        del self.model, self.learner, self.way

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, *, key: tuple[int, ...]) -> Rollout:
        """See `Sampler.sample`.

        `rollout_logp` is that of the distribution really drawn from: this sampler's own logits after temperature,
        top-k and top-p, renormalised, in float32 (float64 for a float64 model). Greedy decoding, temperature 0, draws
        from a point mass, so there it is 0.

        Raises:
            UserError: a sampling value is out of range; a prompt is empty, holds an id outside the vocabulary, or
                leaves no room for a response within the model's positions or `max_batch_tokens`; the model gives a
                logit that is NaN or infinite.
        """
        config, name = self.model.config.get_text_config(), name_of(self.learner)
        positions = max_positions(config)
        room = {f"the {self.max_batch_tokens} max_batch_tokens of the sampler": self.max_batch_tokens}
        room |= {} if positions is None else {f"the {positions} positions of {name}": positions}
        check_request(prompts, sampling, vocab_size=config.vocab_size, name=name, room=room)
        tokens, mask, logp = self._run(prompts, sampling, key)
        width = int(mask.sum(1).max()) if len(prompts) else 0
        tokens, mask, logp = tokens[:, :width], mask[:, :width], logp[:, :width]
        for row, position in (mask & ~logp.isfinite()).nonzero()[:1].tolist():
            raise UserError(
                f"{name_of(self.learner)} gives a logit that is NaN or infinite, or none that is finite, at response "
                f"token {position} of prompt {prompts[row // sampling.num_samples].id}: its weights have diverged, so "
                "lower the learning rate, or the checkpoint is damaged."
            )
        return make_rollout(
            prompts,
            sampling.num_samples,
            self.pad_id,
            tokens=tokens.masked_fill(~mask, self.pad_id),
            mask=mask,
            rollout_logp=logp.masked_fill(~mask, 0),
            truncated=~((tokens[..., None] == torch.tensor(self.stop_ids)).any(-1) & mask).any(1),
        )

    def _run(
        self, prompts: Sequence[Prompt], sampling: Sampling, key: tuple[int, ...]
    ) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """→ (tokens, mask, log-probabilities), on the CPU."""
        how = (self.stop_ids, self.pad_id, self.max_batch_tokens)
        request = Request(self.model, prompts, sampling, key, *how)
        with _sampling(self.model):
            draws = self.way.batch(request).run() if prompts else Draws(request)
        # Cloned out here: a tensor of inference mode could not be saved for a backward pass.
        tokens = draws.tokens.clone().cpu()
        return tokens, tokens >= 0, draws.logp.clone().cpu()


def make_rollout(
    prompts: Sequence[Prompt], num_samples: int, pad_id: int, *, mask: Bool[Tensor, "batch time"], **responses: Tensor
) -> Rollout:
    """The rollout of `num_samples` responses a prompt, neighbouring rows; every token of a response is learned."""
    prompt, prompt_mask = pad([list(each.token_ids) for each in prompts], pad_id, "left")
    return Rollout(
        prompt=prompt.repeat_interleave(num_samples, 0),
        prompt_mask=prompt_mask.repeat_interleave(num_samples, 0),
        group=torch.arange(len(prompts)).repeat_interleave(num_samples),
        mask=mask,
        learned=mask,
        **responses,
    )


def check_stops(stop_ids: Sequence[int], vocab_size: int, name: str) -> None:
    """Refuses stop tokens that the model `name` does not have.

    Raises:
        UserError: with those that there are.
    """
    if not stop_ids or not 0 <= min(stop_ids) <= max(stop_ids) < vocab_size:
        raise UserError(
            f"The stop tokens of {name} are {list(stop_ids)}; there must be at least one, each of its vocabulary (0 to "
            f"{vocab_size - 1})."
        )


def check_request(
    prompts: Sequence[Prompt], sampling: Sampling, *, vocab_size: int, name: str, room: Mapping[str, int]
) -> None:
    """Refuses what cannot be sampled from the model `name`; `room` has the most tokens that each limit allows.

    Raises:
        UserError: a sampling value is out of range, or a prompt is empty, of another vocabulary or too long.
    """
    if sampling.num_samples < 1 or sampling.max_tokens < 1 or sampling.temperature < 0 or sampling.top_k < 0:
        raise UserError(f"{sampling} is out of range: counts must be at least 1, temperature and top_k at least 0.")
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"top_p is {sampling.top_p}; it must be above 0 and at most 1, which switches it off.")
    for prompt in prompts:
        if not prompt.token_ids:
            raise UserError(f"Prompt {prompt.id} has no tokens; a model needs at least one to continue.")
        if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < vocab_size:
            raise UserError(
                f"Prompt {prompt.id} holds a token id outside the vocabulary of {name} (0 to {vocab_size - 1}): "
                "tokenizer and model do not belong together."
            )
        for limit, size in room.items():
            if len(prompt.token_ids) + sampling.max_tokens > size:
                raise UserError(
                    f"Prompt {prompt.id} has {len(prompt.token_ids)} tokens and a response may have "
                    f"{sampling.max_tokens}, more together than {limit}."
                )


@contextmanager
def _sampling(model: PreTrainedModel) -> Iterator[None]:
    """Without gradients, compilation and dropout, and with the cache that gradient checkpointing would switch off."""
    with torch.inference_mode(), uncompiled():
        if not model.training:
            yield
            return
        model.eval()
        try:
            yield
        finally:
            model.train()


def name_of(model: PreTrainedModel) -> str:
    """The model's class, and where it is from."""
    path = model.config._name_or_path
    return f"{type(model).__name__} ({path})" if path else f"the model {type(model).__name__}"
