"""k answers a problem, graded, one record a sample, and their texts; and their scores."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from opd.data.batch import Prompt, Rollout, Sampling
from opd.grading.grader import grade
from opd.grading.grading import Grade
from opd.grading.scores import best_at_k, best_at_k_resampled, maj_at_k, mean_at_k
from opd.records.run_dir import Sample
from opd.records.texts import pack
from opd.rollout.protocol import Sampler


@dataclass(frozen=True)
class AnsweredProblem:
    """A problem's k answers, graded, and those of their texts that are kept, packed."""

    benchmark: str
    problem_id: str
    samples: list[Sample]
    texts: bytes


def answer_benchmarks(
    sampler: Sampler,
    benchmarks: Mapping[str, Sequence[Prompt]],
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    *,
    key: tuple[int, ...],
    grading_timeout: float,
    texts: int | None,
    clock: Callable[[str], AbstractContextManager[None]],
) -> list[AnsweredProblem]:
    """Samples `sampling.num_samples` answers to every problem of every benchmark and grades them.

    `key` seeds the sampling; the same key and model give the same answers. Of a problem's texts the first `texts` are
    kept, or all. `clock(stage)` times the block it opens.
    """
    answered = []
    for name, prompts in benchmarks.items():
        with clock("sampling"):
            rollout = sampler.sample(prompts, sampling, key=key)
        num_tokens = rollout.mask.sum(1).tolist()
        problems = [prompts[index] for index in rollout.group.tolist()]
        with clock("grading"):
            decoded = responses(rollout, tokenizer)
            grades = grade(problems, decoded, timeout=grading_timeout)
        samples = [
            Sample(
                benchmark=name,
                problem_id=problem.id,
                sample=index % sampling.num_samples,
                correct=verdict.correct,
                score=verdict.score,
                answer=problem.answer,
                prediction=verdict.answer,
                num_tokens=length,
                truncated=truncated,
            )
            for index, (problem, verdict, length, truncated) in enumerate(
                zip(problems, grades, num_tokens, rollout.truncated.tolist(), strict=True)
            )
        ]
        for first in range(0, len(samples), sampling.num_samples):
            of_problem = slice(first, first + sampling.num_samples)
            own, problem = samples[of_problem], problems[first]
            packed = pack(name, problem.id, decoded[of_problem][:texts], problem=problem.problem)
            answered.append(AnsweredProblem(name, problem.id, own, packed))
    return answered


def grade_rollout(
    rollout: Rollout, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, timeout: float
) -> list[Grade]:
    """Each response's grade by its prompt's grader."""
    return grade([prompts[index] for index in rollout.group.tolist()], responses(rollout, tokenizer), timeout=timeout)


def responses(rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each response's text, without special tokens."""
    return [
        str(tokenizer.decode(tokens[:length], skip_special_tokens=True))
        for tokens, length in zip(rollout.tokens.tolist(), rollout.mask.sum(1).tolist(), strict=True)
    ]


def summarize(samples: Iterable[Sample]) -> dict[str, float]:
    """`evaluate/<benchmark>/<score>` for each benchmark, and `evaluate/<score>`, their unweighted mean.

    mean@k, best@k (plain maximum), best@k_resampled (veRL's) and maj@k are means over problems; truncated and
    num_tokens are means over samples.
    """
    benchmarks: dict[str, dict[str, list[Sample]]] = {}
    for sample in samples:
        benchmarks.setdefault(sample.benchmark, {}).setdefault(sample.problem_id, []).append(sample)
    metrics: dict[str, float] = {}
    totals: dict[str, list[float]] = {}
    for name, problems in benchmarks.items():
        for score, value in _summary(list(problems.values())).items():
            metrics[f"evaluate/{name}/{score}"] = value
            totals.setdefault(score, []).append(value)
    return metrics | {f"evaluate/{score}": _mean(values) for score, values in totals.items()}


def _summary(problems: list[list[Sample]]) -> dict[str, float]:
    k = max(len(answers) for answers in problems)
    correct = [[answer.correct for answer in answers] for answers in problems]
    flat = [answer for answers in problems for answer in answers]
    return {
        f"mean@{k}": _mean([mean_at_k(each) for each in correct]),
        f"best@{k}": _mean([best_at_k(each) for each in correct]),
        f"best@{k}_resampled": _mean([best_at_k_resampled(each) for each in correct]),
        f"maj@{k}": _mean(
            [
                maj_at_k([answer.prediction for answer in answers], each)
                for answers, each in zip(problems, correct, strict=True)
            ]
        ),
        "truncated": _mean([float(answer.truncated) for answer in flat]),
        "num_tokens": _mean([float(answer.num_tokens) for answer in flat]),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
