"""Rollouts by vLLM, in this process: fed the learner's weights in place, never from a disk."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from opd.config.recipe import Count, Positive
from opd.data.batch import Prompt, Rollout, Sampling, pad
from opd.errors import UserError
from opd.model.load import max_positions
from opd.model.sharded import Root
from opd.rollout.drift import mean_drift
from opd.rollout.sampler import check_request, check_stops, make_rollout, name_of
from opd.rollout.token_sampling import response_hashes
from opd.rollout.vllm_engine import (
    EngineUser,
    architecture,
    first_line,
    load_weights,
    on_cpu,
    preserve_process_state,
    start,
    stop,
)

ROLLOUT = EngineUser(group="rollout", selected="rollout=vllm", alternative="rollout=transformers")

# vLLM raises a lower temperature, other than 0, to this one.
LOWEST_TEMPERATURE = 0.01

PROBE = 6  # tokens of a prompt, and of each of its responses, that are tried at the start


class VllmSampler:
    """Samples with vLLM in the learner's process.

    Args:
        root: the learner, a causal model of a family that vLLM has.
        stop_ids: a response ends with the first of these, which belongs to it.
        pad_id: what the rollout holds where a mask is False.
        dtype: vLLM's weights, activations, keys and values. In bfloat16 it disagrees with a float32 learner, which is
            what a rollout correction is for.
        max_model_len: the most tokens of a prompt and its response together; null: as many as the model has positions.
        kv_cache_bytes: memory for keys and values; null, on GPUs alone: what `gpu_memory_utilization` leaves.
        gpu_memory_utilization: the share of a GPU that weights, activations and cache may take; null where
            `kv_cache_bytes` says it.
        max_num_seqs: the most responses that are sampled at a time.
        enforce_eager: no compilation and no CUDA graphs: a start of seconds, slower tokens.
        tensor_parallel_size: over how many ranks of this run (of torchrun's, say) each copy of the model is spread;
            such ranks sample the prompts of all of them together.
        sleep: on GPUs, free the memory between samples and updates: weights wait in host memory, keys and values are
            dropped.
        max_logp_drift: after each sample, some of its responses are scored by the learner too, and a mean absolute
            difference of log-probabilities above this ends the run; null: no check.
    """

    def __init__(
        self,
        root: Root,
        *,
        stop_ids: Sequence[int],
        pad_id: int,
        dtype: Literal["float32", "bfloat16"],
        max_model_len: Count | None,
        kv_cache_bytes: Count | None,
        gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None,
        max_num_seqs: Count,
        enforce_eager: bool,
        tensor_parallel_size: Count,
        sleep: bool,
        max_logp_drift: Positive | None,
    ):
        model = root.model
        config = model.config.get_text_config()
        self.root, self.learner, self.vocab_size = root, model, config.vocab_size
        self.stop_ids, self.pad_id = tuple(stop_ids), pad_id
        check_stops(stop_ids, self.vocab_size, name_of(model))
        positions = max_positions(config)
        if max_model_len is not None and positions is not None and max_model_len > positions:
            raise UserError(
                f"rollout.max_model_len={max_model_len}: {name_of(model)} has {positions} positions; set at most that, "
                "or null"
            )
        if (kv_cache_bytes is None) == (gpu_memory_utilization is None):
            raise UserError(
                "rollout.kv_cache_bytes and rollout.gpu_memory_utilization: give one of the two, and null for the other"
            )
        self.max_logp_drift, self.drift = max_logp_drift, float("nan")
        keep_groups = torch.distributed.is_initialized()
        with architecture(model) as folder:
            self.llm = start(
                folder,
                ROLLOUT,
                name=type(model).__name__,
                load_format="dummy",  # its weights come from `sync`
                dtype=dtype,
                max_model_len=max_model_len,
                kv_cache_bytes=kv_cache_bytes,
                gpu_memory_utilization=gpu_memory_utilization,
                max_num_seqs=max_num_seqs,
                enforce_eager=enforce_eager,
                tensor_parallel_size=tensor_parallel_size,
                sleep=sleep,
            )
        self.tensor_parallel_size = tensor_parallel_size
        self._stop = weakref.finalize(self, stop, self.llm, keep_groups)
        self.max_model_len: int = self.llm.llm_engine.model_config.max_model_len
        self.sleeps = sleep and not on_cpu()
        if self.sleeps:
            self.llm.sleep(level=1)
        self.sync()
        self._try_a_few_tokens()

    def sync(self) -> None:
        """Take over the learner's weights, in place. Of a sharded learner every rank must call this.

        Raises:
            UserError: where vLLM cannot reload a layer whose weights it has rearranged for this device.
        """
        with self._awake("weights"), preserve_process_state():
            try:
                self.llm.collective_rpc(load_weights, args=(self.learner,))
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"{ROLLOUT.selected}: vLLM cannot take over the learner's weights in place ({first_line(error)}); "
                    f"use {ROLLOUT.alternative}"
                ) from error
            # Keys and values of the old weights are those of another model.
            self._reset_prefix_cache()

    def close(self) -> None:
        """Frees its memory; it cannot sample afterwards."""
        self._stop()
        del self.llm, self.learner, self.root

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, *, key: tuple[int, ...]) -> Rollout:
        """See `Sampler.sample`; another batch may round differently, and so occasionally draw another token.

        `rollout_logp` is that of the distribution really drawn from: vLLM's own logits after temperature, top-k and
        top-p, renormalised, in float32; 0 for greedy decoding, temperature 0, which draws from a point mass.

        Raises:
            UserError: a sampling value is out of range; a prompt is empty, holds an id outside the vocabulary, or
                leaves no room for a response within `max_model_len`; the model gives a logit that is NaN or infinite;
                vLLM's log-probabilities are further from the learner's than `max_logp_drift`.
        """
        check_request(
            prompts,
            sampling,
            vocab_size=self.vocab_size,
            name=name_of(self.learner),
            room={f"rollout.max_model_len, {self.max_model_len}": self.max_model_len},
        )
        if 0 < sampling.temperature < LOWEST_TEMPERATURE:
            raise UserError(
                f"temperature is {sampling.temperature}; with rollout=vllm it is 0 or at least {LOWEST_TEMPERATURE}."
            )
        tokens, logp = self._generate_with_ranks(prompts, sampling, key)
        for row, position in (~logp.isfinite()).nonzero()[:1].tolist():
            raise UserError(
                f"{name_of(self.learner)} gives vLLM a logit that is NaN or infinite at response token {position} of "
                f"prompt {prompts[row // sampling.num_samples].id}: its weights have diverged, so lower the learning "
                "rate, or the checkpoint is damaged."
            )
        ids, mask = pad(tokens, self.pad_id, "right")
        rollout = make_rollout(
            prompts,
            sampling.num_samples,
            self.pad_id,
            tokens=ids,
            mask=mask,
            rollout_logp=logp if sampling.temperature else torch.zeros_like(logp),
            truncated=torch.tensor([row[-1] not in self.stop_ids for row in tokens], dtype=torch.bool),
        )
        self._compare(rollout, sampling)
        return rollout

    def _generate_with_ranks(
        self, prompts: Sequence[Prompt], sampling: Sampling, key: tuple[int, ...]
    ) -> tuple[list[list[int]], Tensor]:
        """`_generate` for this rank's prompts, together with the ranks that hold the same copy of the model."""
        ranks, size = self.root.ranks, self.tensor_parallel_size
        parts = ranks.gather(list(prompts))[ranks.rank // size * size :][:size] if size > 1 else [prompts]
        shared = [prompt for part in parts for prompt in part]
        tokens, logp = self._generate(shared, sampling, seeds(key, shared, sampling.num_samples))
        start = sampling.num_samples * sum(len(part) for part in parts[: ranks.rank % size])
        own = slice(start, start + sampling.num_samples * len(prompts))
        return tokens[own], logp[own, : max(map(len, tokens[own]), default=0)]

    def _generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: Sequence[int]
    ) -> tuple[list[list[int]], Tensor]:
        """→ (token ids of each response, their log-probabilities in the rollout's layout)."""
        from vllm import SamplingParams  # pyright: ignore

        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                stop_token_ids=list(self.stop_ids),
                seed=each,
                logprobs=0,  # the sampled token's alone
                flat_logprobs=True,
                detokenize=False,
                ignore_eos=True,
            )
            for each in seed
        ]
        rows = [{"prompt_token_ids": list(each.token_ids)} for each in prompts for _ in range(sampling.num_samples)]
        if not rows:
            return [], torch.zeros(0, 0)
        with self._awake("weights", "kv_cache"), preserve_process_state():
            # What an earlier call left would change how the prompts are cut, and with that the rounding: a resumed run
            # would not repeat itself.
            self._reset_prefix_cache()
            answers = [output.outputs[0] for output in self.llm.generate(rows, params, use_tqdm=False)]
        tokens = [list(answer.token_ids) for answer in answers]
        logp = torch.zeros(len(tokens), max(map(len, tokens)))
        for row, answer in enumerate(answers):
            assert len(answer.logprobs.logprobs) == len(tokens[row]) > 0 and max(tokens[row]) < self.vocab_size
            logp[row, : len(tokens[row])] = torch.tensor(answer.logprobs.logprobs)
        return tokens, logp

    def _compare(self, rollout: Rollout, sampling: Sampling) -> None:
        """Measures `drift`, vLLM's against the learner's log-probs, where a bound is set and there is something to."""
        if self.max_logp_drift is None or not sampling.temperature or not self.root.ranks.any(len(rollout) > 0):
            return
        self.drift = mean_drift(self.root, rollout, sampling)
        if not self.drift <= self.max_logp_drift:
            raise UserError(
                f"rollout.max_logp_drift={self.max_logp_drift}: vLLM's log-probabilities of what it sampled are "
                f"{self.drift:.2g} from the learner's on average; set a higher bound (0.1 is usual in bfloat16) or "
                "rollout.dtype=float32, and if they differ there too sample with rollout=transformers"
            )

    @contextmanager
    def _awake(self, *parts: str) -> Iterator[None]:
        if not self.sleeps:
            yield
            return
        # The trainer's allocator keeps what it has freed, and vLLM asks the device itself.
        torch.cuda.empty_cache()
        for part in parts:
            self.llm.wake_up(tags=[part])
        try:
            yield
        finally:
            self.llm.sleep(level=1)

    def _reset_prefix_cache(self) -> None:
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM keeps keys and values of requests that should have ended")

    def _try_a_few_tokens(self) -> None:
        """Some families load, and have no kernel on this device, or a wrong one.

        Raises:
            UserError: with vLLM's reason.
        """
        length = max(1, min(PROBE, self.max_model_len // 2))
        probe = Prompt("probe", "", "", "", self.stop_ids[:1] * length)
        try:
            _, logp = self._generate([probe], Sampling(4, length, 1.0, 1.0, 0), range(4))
            if not logp.isfinite().all():
                raise FloatingPointError("its logits are NaN or infinite")
        except Exception as error:  # vLLM raises many kinds here; each means the same to the user
            reason = f"rollout=vllm: vLLM cannot run {name_of(self.learner)} here ({first_line(error)}); "
            self.close()
            raise UserError(reason + "sample with rollout=transformers") from error


def seeds(key: tuple[int, ...], prompts: Sequence[Prompt], num_samples: int) -> list[int]:
    """One a response, from its hash."""
    return [int.from_bytes(digest) >> 1 for digest in response_hashes(key, prompts, num_samples, size=8)]
