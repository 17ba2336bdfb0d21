"""What a world's models can do, each by itself: the witnesses of docs/worlds.md, as Markdown.

    python -m benchmarks.world [scale=small] [overrides]

Scores, lengths and hints are those of evaluation, entropies and the disagreement of rounded samplers those of the
rollouts of training. Nothing is trained but what is missing, and no two methods are compared.
"""

import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from analysis.text import markdown_table
from opd.config.schema import RunConfig
from opd.data.batch import Prompt, Rollout, Sampling
from opd.data.puzzles import HINTS, hinted
from opd.grading.grader import grade
from opd.model.load import load_model, load_tokenizer, stop_token_ids
from opd.model.policy import Scorer
from opd.model.sharded import Root
from opd.ranks import dist
from opd.recipes.make import locate
from opd.rollout.replica import Precision
from opd.rollout.sampler import TransformersSampler
from opd.step.assemble import load_benchmarks, load_prompts
from opd.step.benchmarks import responses
from sweeps.compose import composer

FORK = 0.5  # nats: a token whose next-token entropy is above this is a fork
TRAINING = 64  # prompts of training, one response each, for entropies and rounded samplers
PRECISIONS: tuple[Precision, ...] = ("int8", "float8", "int4")


@dataclass(frozen=True)
class Scores:
    """Means over the problems of one model: mean@k, best@k and the share of responses that reach a length."""

    mean: float
    best: float
    reached: dict[int, float]


class Model:
    """A model of the world, by the name that a config gives it."""

    def __init__(self, name: str, config: RunConfig):
        path, revision = locate(name, config)
        self.name, self.config = name, config
        self.tokenizer = load_tokenizer(path, revision=revision, key="model")
        self.model = load_model(path, revision=revision, dtype="float32", key="model")
        self.root = Root(self.model, dist.start(timeout=60))

    def sampler(self, dtype: Precision = "float32") -> TransformersSampler:
        pad: Any = self.tokenizer.pad_token_id
        return TransformersSampler(
            self.root,
            stop_ids=stop_token_ids(self.model, self.tokenizer),
            pad_id=pad,
            dtype=dtype,
            max_batch_tokens=self.config.rollout["max_batch_tokens"],
        )

    def scores(self, prompts: dict[str, list[Prompt]], length: int, show: Callable[[str], str] = str) -> Scores:
        """Unweighted means over the benchmarks; `show` gives the text in the place of a problem's."""
        means, bests, reached = [], [], {length: [], 2 * length: []}
        config = self.config.evaluate
        for problems in prompts.values():
            own = [replace(prompt, token_ids=tuple(self.tokenizer.encode(show(prompt.problem)))) for prompt in problems]
            sampling = Sampling(config.k, 2 * length, config.temperature, config.top_p, config.top_k)
            rollout = self.sampler().sample(own, sampling, key=(0,))
            lengths = rollout.mask.sum(1) + rollout.truncated
            asked = [prompt for prompt in own for _ in range(config.k)]
            grades = grade(asked, responses(rollout, self.tokenizer), timeout=config.grading_timeout)
            right = torch.tensor([each.correct for each in grades]) & (lengths <= length)
            means.append(right.float().mean().item())
            bests.append(right.view(-1, config.k).any(1).float().mean().item())
            for limit, shares in reached.items():
                shares.append((lengths > limit).float().mean().item())
        return Scores(_mean(means), _mean(bests), {limit: _mean(shares) for limit, shares in reached.items()})

    def rollout(self, prompts: Sequence[Prompt], dtype: Precision = "float32") -> Rollout:
        sampling = Sampling(1, self.config.max_response_length, 1.0, 1.0, 0)
        return self.sampler(dtype).sample(prompts, sampling, key=(1,))

    def scorer(self) -> Scorer:
        memory = self.config.memory
        return Scorer(
            self.root,
            self.root.ranks,
            micro_batch_tokens=memory.micro_batch_tokens,
            logit_chunk=memory.logit_chunk,
            temperature=1.0,
        )


def main(overrides: Sequence[str]) -> None:
    with composer() as composed:
        config = composed.config(["scale=small", "teacher.models=${scale.ladder}", "ensemble=arithmetic", *overrides])
    torch.set_num_threads(config.threads or torch.get_num_threads())
    length, k = config.max_response_length, config.evaluate.k
    student = Model(config.student.model, config)
    teachers = [Model(name, config) for name in config.scale.ladder]
    benchmarks = load_benchmarks(config, student.tokenizer, student.model)
    prompts = load_prompts(config.prompts.source, config, student.tokenizer, key="prompts.source")[:TRAINING]
    start = student.rollout(prompts)
    head = ("model", "parameters", f"mean@{k}", f"best@{k}", f"reach {length}", f"reach {2 * length}")
    head += (*(f"{hint} as a hint" for hint in HINTS), "entropy", "forks", "entropy, student's texts")
    rows = []
    for model in (student, *teachers):
        scores = model.scores(benchmarks, length)
        hints = [
            model.scores(
                benchmarks, length, lambda problem, hint=hint: hinted(problem, hint, random.Random(problem))
            ).mean
            for hint in HINTS
        ]
        texts = model.rollout(prompts)
        own, theirs = (model.scorer().scores(rollout) for rollout in (texts, start))
        entropy = own.entropy[texts.mask]
        rows.append(
            (
                model.name,
                f"{sum(each.numel() for each in model.model.parameters()):,}",
                *(f"{100 * share:.1f}" for share in (scores.mean, scores.best, *scores.reached.values(), *hints)),
                f"{entropy.mean():.3f}",
                f"{100 * (entropy > FORK).float().mean():.1f}",
                f"{theirs.entropy[start.mask].mean():.3f}",
            )
        )
    print(markdown_table(head, rows))
    drifts = []
    for dtype in PRECISIONS:
        rollout = student.rollout(prompts, dtype)
        ratio = (student.scorer().scores(rollout).logp - rollout.rollout_logp)[rollout.mask]
        drifts.append((dtype, f"{ratio.abs().mean():.4f}", f"{100 * (ratio.abs() > math.log(2)).float().mean():.2f}"))
    print(markdown_table(("rollout.dtype", "mean abs log ratio", "outside [0.5, 2]"), drifts))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main(sys.argv[1:])
