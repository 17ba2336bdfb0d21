"""Teachers in this process on vLLM engines, which score given tokens by `prompt_logprobs`."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from opd.data.batch import Rollout, TeacherScores, TopTokens
from opd.errors import UserError
from opd.ranks.dist import Ranks
from opd.rollout.vllm_engine import EngineUser, first_line, preserve_process_state, start, stop
from opd.teacher.local import LoadedTeachers, Teachers, response_tokens, scores_of_tokens, sequences

TEACHER = EngineUser(group="teacher.vllm", selected="teacher.engine=vllm", alternative="teacher.engine=local")


class VllmScorer:
    """One teacher on a vLLM engine of its own.

    Args:
        source: the teacher's directory or hub id.
        revision: of the hub's; null for the newest.
        longest: the tokens of the longest sequence that it will score.
        dtype: of weights, activations, keys and values.
        key: the config key to name in a refusal.
        likeliest: how many of the likeliest tokens to return at each position, in addition to the sequence's own.
        narrow: gives the engine's settings for a model that is cut, as `opd.teacher.vllm_widths.narrow_loading` does.
        knobs: those of `opd.config.schema.TeacherVllm`.
    """

    def __init__(
        self,
        source: str,
        *,
        revision: str | None,
        longest: int,
        dtype: str,
        key: str,
        likeliest: int = 0,
        narrow: Callable[[], Mapping[str, Any]] = dict,
        **knobs: Any,
    ):
        self.likeliest = likeliest
        keep_groups = torch.distributed.is_initialized()
        name = f"{key}={source!r}"
        self.llm = start(
            source,
            TEACHER,
            name=name,
            revision=revision,
            tokenizer_revision=revision,
            dtype=dtype,
            load_format="safetensors",  # never a pickle
            max_logprobs=max(1, likeliest),
            more=narrow,
            **knobs,
        )
        self._stop = weakref.finalize(self, stop, self.llm, keep_groups)
        try:
            self._check(name, longest)
        except UserError:
            self._stop()
            raise

    def close(self) -> None:
        """Frees its memory."""
        self._stop()

    def _check(self, name: str, longest: int) -> None:
        most = self.llm.llm_engine.model_config.max_model_len
        if most < longest + 1:
            raise UserError(
                f"teacher.vllm.max_model_len: {name} takes {most} tokens, and the longest prompt, "
                f"max_response_length and one more are {longest + 1}; set that many, or shorter responses"
            )
        try:
            self.score([[0, 0]])
        except Exception as error:  # some families load and have no kernel on this device; vLLM raises many kinds here
            raise UserError(
                f"teacher.engine=vllm: vLLM cannot run {name} here ({first_line(error)}); use teacher.engine=local"
            ) from error

    def score(self, rows: Sequence[list[int]]) -> list[TopTokens]:
        """The log-probs of all tokens of each row but the first, given those before, at temperature 1."""
        from vllm import SamplingParams  # pyright: ignore

        params = SamplingParams(max_tokens=1, prompt_logprobs=self.likeliest, flat_logprobs=True, detokenize=False)
        with preserve_process_state():
            outputs = self.llm.generate([{"prompt_token_ids": row} for row in rows], params, use_tqdm=False)
        tops, width = [], self.likeliest + 1
        for row, output in zip(rows, outputs, strict=True):
            logprobs = output.prompt_logprobs
            ids = torch.tensor(logprobs.token_ids, dtype=torch.long).reshape(len(row) - 1, width)
            assert ids[:, 0].tolist() == row[1:]
            tops.append(TopTokens(ids, torch.tensor(logprobs.logprobs).reshape(len(row) - 1, width)))
        return tops


class VllmTeachers(Teachers):
    """Teachers on vLLM engines in this process; `load[i]()` starts that of teacher i."""

    def __init__(self, load: Sequence[Callable[[], VllmScorer]], ranks: Ranks):
        self._loaded, self._ranks = LoadedTeachers(load, VllmScorer.close), ranks

    def __len__(self) -> int:
        return len(self._loaded)

    def score(self, rollout: Rollout, needed: Sequence[int]) -> TeacherScores:
        """See `Teachers.score`; there are no entropies."""
        rows = sequences(rollout)
        top = {
            index: response_tokens(rollout, scorer.score(rows)) for index, scorer in self._loaded.load_needed(needed)
        }
        return scores_of_tokens(rollout, len(self), top, self._ranks)

    def close(self) -> None:
        self._loaded.close()
