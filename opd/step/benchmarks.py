"""k answers a problem, graded, one record a sample, and their texts; and their scores."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

from transformers import PreTrainedTokenizerBase

from opd.config.schema import Evaluate
from opd.data.batch import Prompt, Rollout, Sampling
from opd.grading.grader import grade
from opd.grading.grading import Grade
from opd.grading.scores import best_at_k, best_at_k_resampled, maj_at_k, mean_at_k
from opd.ranks.dist import Ranks
from opd.records.answers import AnsweredProblem, KeptAnswers
from opd.records.run_dir import Sample
from opd.records.texts import pack
from opd.rollout.protocol import Sampler


def answer_benchmarks(
    sampler: Sampler,
    benchmarks: Mapping[str, Sequence[Prompt]],
    settings: Evaluate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    key: tuple[int, ...],
    ranks: Ranks,
    kept: KeptAnswers,
    stopping: Callable[[], bool],
    report: Callable[[str, int, int], None],
    clock: Callable[[str], AbstractContextManager[None]],
) -> list[AnsweredProblem] | None:
    """Samples `settings.k` answers to every problem of every benchmark and grades them, a batch of
    `settings.batch_answers` at a time on each rank; the ranks share the problems. All ranks get the answers.

    `key` seeds the sampling; the same key, model and number of ranks give the same answers, in one go or several: each
    finished batch is `kept`, and read from there. Where `stopping` asks any rank to stop, ends before the next batch
    and returns None. `report(benchmark, problems answered, problems)` is called before each batch, on every rank.
    `clock(stage)` times the block it opens.
    """
    batches = [
        (name, first, problems[first : first + size])
        for name, problems in benchmarks.items()
        for size in [_problems_of_a_batch(settings, len(problems), ranks.size)]
        for first in range(0, len(problems), size)
    ]

    def read(number: int) -> list[AnsweredProblem] | None:
        name, _, problems = batches[number]
        return kept.read(number, name, [problem.id for problem in problems], settings.k) if ranks.main else None

    found = ranks.gather([read(number) for number in range(len(batches))])[0]
    answered: list[AnsweredProblem] = []
    for number, (name, first, problems) in enumerate(batches):
        report(name, first, len(benchmarks[name]))
        batch = found[number]
        if batch is None:
            if ranks.any(stopping()):
                return None
            own = _answer(sampler, name, problems[ranks.rank :: ranks.size], settings, tokenizer, key=key, clock=clock)
            parts = ranks.gather(own)
            batch = [parts[place % ranks.size][place // ranks.size] for place in range(len(problems))]
            ranks.on_main(lambda number=number, batch=batch: kept.write(number, batch))
        answered += batch
    return answered


def _problems_of_a_batch(settings: Evaluate, problems: int, ranks: int) -> int:
    if settings.batch_answers is None:
        return max(1, problems)
    return ranks * max(1, settings.batch_answers // settings.k)


def _answer(
    sampler: Sampler,
    benchmark: str,
    prompts: Sequence[Prompt],
    settings: Evaluate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    key: tuple[int, ...],
    clock: Callable[[str], AbstractContextManager[None]],
) -> list[AnsweredProblem]:
    """The answers to these problems, and of each problem's texts the first `settings.texts`, or all."""
    sampling = Sampling(settings.k, settings.max_response_length, settings.temperature, settings.top_p, settings.top_k)
    with clock("sampling"):
        rollout = sampler.sample(prompts, sampling, key=key)
    with clock("grading"):
        decoded = responses(rollout, tokenizer)
        problems = [prompts[index] for index in rollout.group.tolist()]
        grades = grade(problems, decoded, timeout=settings.grading_timeout)
    samples = [
        Sample(
            benchmark=benchmark,
            problem_id=problem.id,
            sample=index % settings.k,
            correct=verdict.correct,
            score=verdict.score,
            answer=problem.answer,
            prediction=verdict.answer,
            num_tokens=length,
            truncated=truncated,
        )
        for index, (problem, verdict, length, truncated) in enumerate(
            zip(problems, grades, rollout.mask.sum(1).tolist(), rollout.truncated.tolist(), strict=True)
        )
    ]
    slices = [slice(first, first + settings.k) for first in range(0, len(samples), settings.k)]
    return [
        AnsweredProblem(
            benchmark,
            problem.id,
            samples[own],
            pack(benchmark, problem.id, decoded[own][: settings.texts], problem=problem.problem),
        )
        for problem, own in zip(prompts, slices, strict=True)
    ]


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
