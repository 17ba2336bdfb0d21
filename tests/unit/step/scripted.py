"""A sampler and teachers that answer from tables, for runs that are real otherwise: small random models in float64."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opd.config.schema import RunConfig
from opd.data.batch import Prompt, Rollout, Sampling, TeacherScores, TokenScores, pad
from opd.model.load import load_model
from opd.model.policy import Policy
from opd.model.sharded import Root
from opd.recipes.tokenizer import EOS, build_tokenizer
from opd.step import assemble
from opd.teacher import load as teachers
from opd.teacher.local import Teachers, stack_scores
from tests.integration.conftest import composed
from tests.random_models import save_random
from tests.unit.small import ALONE

TOKENIZER = build_tokenizer()
END = TOKENIZER.get_vocab()[EOS]
SIZE = len(TOKENIZER)
NUM_TEACHERS = 3
# Of each teacher, the log-probs of every token after each of as many contexts.
TABLES = torch.randn(
    NUM_TEACHERS, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
).log_softmax(-1)
# log π_rollout - log π_student of a token: inside and outside of the range of every rollout correction.
DRIFTS = (-1.1, -0.4, 0.0, 0.0, 0.3, 0.9)


def context(prompt: Sequence[int], before: int) -> int:
    """What the teachers see of a text: its first token, so that a prompt's prefix shows, and the last."""
    return (prompt[0] + before) % SIZE


def says(teacher: int, prompt: Sequence[int], response: Sequence[int]) -> list[tuple[float, float]]:
    """A teacher's log-prob of each token of a response, and its entropy there."""
    found = []
    for before, token in zip([prompt[-1], *response], response, strict=False):
        row = TABLES[teacher, context(prompt, before)].tolist()
        found.append((row[token], -sum(math.exp(logp) * logp for logp in row)))
    return found


def response(prompt: Prompt, key: tuple[int, ...], sample: int) -> tuple[list[int], list[float]]:
    """The tokens and drifts of a prompt's response: the right answer, any tokens, or nothing at all."""
    draw = random.Random(repr((prompt.id, key, sample)))
    kind = draw.random()
    if kind < 0.15:
        tokens = []
    elif kind < 0.5:
        tokens = [*TOKENIZER.encode(f"#### {prompt.answer}"), END]
    else:
        tokens = [draw.randrange(11, SIZE) for _ in range(draw.randint(1, 7))] + [END] * draw.randint(0, 1)
    return tokens, [draw.choice(DRIFTS) for _ in tokens]


class ScriptedSampler:
    """Notes what it is asked for."""

    def __init__(self, policy: Policy):
        self.policy, self.asked = policy, []
        self.synced = 0

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, *, key: tuple[int, ...]) -> Rollout:
        self.asked.append((list(prompts), sampling, key))
        rows = [(prompt, *response(prompt, key, n)) for prompt in prompts for n in range(sampling.num_samples)]
        prompt, prompt_mask = pad([list(each.token_ids) for each, _, _ in rows], 0, "left")
        tokens, mask = pad([each for _, each, _ in rows], 0, "right")
        drift = torch.zeros(mask.shape, dtype=torch.float64)
        drift[mask] = torch.tensor([number for *_, each in rows for number in each], dtype=torch.float64)
        rollout = Rollout(
            prompt=prompt,
            prompt_mask=prompt_mask,
            tokens=tokens,
            mask=mask,
            learned=mask,
            rollout_logp=drift,
            group=torch.arange(len(prompts)).repeat_interleave(sampling.num_samples),
            truncated=torch.tensor([each[-1:] != [END] for _, each, _ in rows]),
        )
        return replace(rollout, rollout_logp=torch.where(mask, self.policy.scores(rollout).logp + drift, 0))

    def sync(self) -> None:
        self.synced += 1

    def close(self) -> None: ...


class ScriptedTeachers(Teachers):
    """Notes which are asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return NUM_TEACHERS

    def score(self, rollout: Rollout, needed: Sequence[int]) -> TeacherScores:
        self.asked.append(tuple(needed))
        found = {}
        for teacher in needed:
            scores = torch.zeros(2, *rollout.mask.shape, dtype=torch.float64)
            for row, mask in enumerate(rollout.mask):
                prompt = rollout.prompt[row][rollout.prompt_mask[row]].tolist()
                said = says(teacher, prompt, rollout.tokens[row][mask].tolist())
                scores[:, row, mask] = torch.tensor(said, dtype=torch.float64).reshape(-1, 2).T
            found[teacher] = TokenScores(scores[0], scores[1])
        return stack_scores(rollout, len(self), found)

    def close(self) -> None: ...


def make_models(folder: Path) -> None:
    """A random student, an anchor and three teachers."""
    names = ("student", "anchor", "small", "medium", "large")
    save_random(folder, {name: {"tie_embeddings": False} for name in names})


@cache
def config_of(models: Path, *overrides: str) -> RunConfig:
    """The checked config of a few steps on those models."""
    return composed(
        [
            f"student.model={models / 'student'}",
            f"scale.ladder=[{models / 'small'},{models / 'medium'},{models / 'large'}]",
            "teacher=ladder",
            "batch_size=4",
            "samples_per_prompt=3",
            "max_response_length=16",
            "num_steps=6",
            "prompts.source.num=32",
            "evaluate.sources.arithmetic.num=5",
            "evaluate.k=3",
            "optim.lr=0.01",
            *overrides,
        ]
    )


def script(patch: pytest.MonkeyPatch) -> None:
    """What is assembled from now on has models in float64 and the scripted sampler."""
    load = load_model

    def double(*args: Any, **knobs: Any) -> PreTrainedModel:
        return load(*args, **knobs).double()

    def build_sampler(config: RunConfig, root: Root, tokenizer: PreTrainedTokenizerBase) -> ScriptedSampler:
        memory = {"micro_batch_tokens": 1000, "logit_chunk": 1000}
        return ScriptedSampler(Policy(root, ALONE, temperature=config.rollout["temperature"], **memory))

    for module in (assemble, teachers):
        patch.setattr(module, "load_model", double)
    patch.setattr(assemble, "build_sampler", build_sampler)
