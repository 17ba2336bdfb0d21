"""The evaluation of a step: answered, recorded, compared with the best one before it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from opd.checkpoint.steps import Progress
from opd.records.answers import KeptAnswers, answers_of, forget
from opd.step.benchmarks import answer_benchmarks, summarize
from opd.step.run import Run

Best = tuple[int | None, float]  # the step with the best score so far, and its mean@k


def where_it_left(run: Run, progress: Progress | None) -> tuple[Best, dict[str, Any] | None]:
    """The best step so far, and the line of metrics of the checkpoint's step where its evaluation is still due."""
    if progress is None:
        return (None, -math.inf), None
    best: Best = (None, -math.inf)
    if progress.best_step is not None and progress.best_score is not None:
        best = (progress.best_step, progress.best_score)
    lines = run.folder.metrics()[-1:] if run.ranks.main else []
    recorded = next((line for line in run.ranks.gather(lines)[0] if line["step"] == progress.step), None)
    if recorded is not None:
        if run.ranks.main:
            forget(run.folder.answers_folder(progress.step))
        return better(best, progress.step, recorded, run), None
    line = progress.line
    return best, line and {name: math.nan if value is None else value for name, value in line.items()}


def better(best: Best, number: int, line: Mapping[str, Any], run: Run) -> Best:
    """The best step so far, where the evaluation of step `number` has these scores; the earlier of equal ones. Step 0,
    which has no checkpoint, is none.
    """
    score = line.get(f"evaluate/mean@{run.config.evaluate.k}")
    return (number, score) if number and score is not None and score > best[1] else best


def evaluate(run: Run, number: int, stopping: Callable[[], bool]) -> dict[str, float] | None:
    """Evaluates the student after step `number` and records every sample; returns the scores, None where `stopping`
    asked it to stop before its end.
    """
    settings, key, ranks = run.config.evaluate, (run.config.seed, number, 1), run.ranks
    manifest = run.folder.manifest() if ranks.main else {}
    facts = [manifest.get(name) for name in ("config_hash", "contents")]
    answered = answer_benchmarks(
        run.evaluation_sampler,
        run.benchmarks,
        settings,
        run.tokenizer,
        key=key,
        ranks=ranks,
        kept=KeptAnswers(run.folder.answers_folder(number), answers_of(*facts, key, settings.texts)),
        stopping=stopping,
        report=run.asked,
        clock=run.clock,
    )
    if answered is None:
        return None
    samples = [sample for problem in answered for sample in problem.samples]
    if ranks.main:
        run.folder.write_samples(number, samples, b"".join(problem.texts for problem in answered))
    return summarize(samples)
