"""The step, then the loop.

prompts → rollout → teacher scores → ensemble → divergence → filter → rollout_correction → loss → optimizer
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from torch import Tensor

from opd.checkpoint import store as checkpoint
from opd.checkpoint.steps import Progress, prune, step_folder
from opd.data.batch import Prompt, Sampling
from opd.data.prompts import batch_indices
from opd.errors import UserError
from opd.objective.divergence import share_beyond
from opd.objective.filter import TokenSignals
from opd.objective.filter import metrics as filter_metrics
from opd.objective.mixture import Mixture, Rows
from opd.objective.rollout_correction import metrics as correction_metrics
from opd.step.batch import Batch
from opd.step.benchmarks import answer_benchmarks, grade_rollout, summarize
from opd.step.run import Run
from opd.step.scored import Scored, own_positions, response_teachers


def step(run: Run, number: int) -> dict[str, float]:
    """One batch, the `number`-th (from 1), sampled from the newest student and learned; returns its metrics."""
    config, progress, key = run.config, (number - 1) / run.num_steps, (run.config.seed, number)
    indices = batch_indices(len(run.prompts), batch_size=config.batch_size, step=number - 1, seed=config.seed)
    prompts = [run.prompts[index] for index in indices]
    routed = run.ensemble.assign([prompt.domain for prompt in prompts], key)
    own, rewarded = score(run, prompts, routed, progress, key)
    scored = own.gathered(run.ranks, own_positions(len(prompts), run.num_updates, run.ranks))

    rollout, student = scored.rollout, scored.student
    mixture = mix(run, scored, routed, progress)
    log_ratio = student.logp - scored.reference_logp
    learned = rollout.learned
    allowed = run.eligible(rollout.mask, rollout.tokens) & learned
    signals = TokenSignals(log_ratio, student.entropy, scored.reference_entropy, scored.exact_kl)
    filtered = run.filter(signals, allowed, rollout.group)
    weight, matched = run.rollout_correction(student.logp, rollout.rollout_logp, learned)
    divergence = run.divergence.at(filtered.inside, scored.reference_entropy).clamped(config.shaping.log_ratio_clamp)
    batch, prepared = run.learner.prepare(
        Batch(
            own=own.rollout,
            rollout=rollout,
            student=student,
            teachers=scored.teachers,
            mixture=mixture,
            divergence=divergence,
            weight=weight * scored.prompt_weight,
            keep=filtered.keep & matched,
            count=filtered.count & matched,
            anchor_logp=scored.anchor_logp,
            reward=scored.reward,
            extrapolation=config.shaping.extrapolation,
        ),
        progress,
    )
    metrics = update(run, batch, number) | prepared | rewarded
    with run.clock("rollout"):
        run.sampler.sync()
    run.meter.count(own.rollout)
    run.pages.write(number, prompts, rollout, batch.signal(log_ratio), batch.keep, log_ratio)

    metrics |= {
        "divergence/reverse_kl": _mean(log_ratio, learned),
        "divergence/value": _mean(divergence.value(log_ratio), learned),
        "divergence/clamped": share_beyond(log_ratio, learned, config.shaping.log_ratio_clamp),
        "entropy/student": _mean(student.entropy, learned),
        run.entropy_metric: _mean(scored.reference_entropy, learned),
        "response/length": float(rollout.mask.sum(1).float().mean()),
        "response/truncated": float(rollout.truncated.float().mean()),
        "response/tokens": float(rollout.mask.sum()),
    }
    shares = filter_metrics(learned, allowed, filtered, matched)
    correction = correction_metrics(student.logp, rollout.rollout_logp, learned, weight, matched)
    metrics |= {f"filter/{name}": value for name, value in shares.items()}
    return metrics | {f"rollout_correction/{name}": value for name, value in correction.items()}


def score(
    run: Run, prompts: Sequence[Prompt], routed: Sequence[int] | None, progress: float, key: tuple[int, ...]
) -> tuple[Scored, dict[str, float]]:
    """Samples and scores the responses to this rank's share of the prompts; also returns the rewards' metrics."""
    config, positions = run.config, own_positions(len(prompts), run.num_updates, run.ranks)
    own = [prompts[position] for position in positions]
    own_routed = None if routed is None else [routed[position] for position in positions]
    with run.clock("rollout"):
        rollout = run.responses.draw(run.control.for_student(own, own_routed), run.rollout, key=key)
        rollout = rollout.widened(run.ranks.max(rollout.tokens.shape[1]))
    grades = cache(lambda: grade_rollout(rollout, own, run.tokenizer, timeout=config.evaluate.grading_timeout))
    with run.clock("teacher"):
        seen = run.control.for_teachers(rollout, own)
        (view,) = run.context.view(own, seen, grades)
        pending = run.teachers.start_scoring(view.of(seen), run.ensemble.needed(progress))
        anchor_logp = None if run.anchor is None else run.anchor.scores(rollout).logp
    with run.clock("student"):
        student = run.policy.scores(rollout)
    with run.clock("reward"):
        reward, prompt_weight, rewarded = run.reward(rollout, grades)
    with run.clock("teacher"):
        teachers = pending()
    scored = Scored(
        rollout=rollout,
        student=student,
        teachers=teachers,
        reference_logp=student.logp,
        reference_entropy=student.entropy,
        exact_kl=None,
        anchor_logp=anchor_logp,
        reward=reward,
        prompt_weight=prompt_weight,
    )
    with run.clock("teacher"):
        reference_logp, entropy, exact_kl = run.reference(rollout, teachers, mix(run, scored, own_routed, progress))
    rewarded = {name: total / run.ranks.size for name, total in run.ranks.sum(rewarded).items()}
    return replace(scored, reference_logp=reference_logp, reference_entropy=entropy, exact_kl=exact_kl), rewarded


def mix(run: Run, scored: Scored, routed: Sequence[int] | None, progress: float) -> Mixture:
    """The ensemble's weights for these responses."""
    rollout, teachers = scored.rollout, scored.teachers
    teacher = response_teachers(routed, rollout.group)
    return run.ensemble.mixture(
        progress, Rows(teacher, rollout.group, rollout.learned, teachers.logp, teachers.entropy)
    )


def update(run: Run, batch: Batch, number: int) -> dict[str, float]:
    """The optimizer's updates of step `number`, one for each `mini_batch_size` prompts; metrics are their means.

    Raises:
        UserError: where a loss or gradient is not a finite number; that update was not made.
    """
    updates: list[dict[str, float]] = []
    for part in batch.parts(run.num_updates, run.ranks, run.divisor):
        with run.clock("backward"):
            metrics = run.learner.backward(part)
        with run.clock("optimizer"):
            metrics |= run.optimizer.step(number)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                raise UserError(
                    f"step {number}: {name} is {metrics[name]}, so the student was left as it was before this update; "
                    "lower optim.lr, or choose a rollout_correction or divergence that bounds the weights"
                )
        updates.append(metrics)
    return {name: sum(each[name] for each in updates) / len(updates) for name in updates[0]}


def loop(
    run: Run, *, start: int, best: tuple[int | None, float], stopping: Callable[[], bool], report: Callable
) -> bool:
    """Steps `start`…num_steps with their evaluations, records and checkpoints.

    Records of a step are written before its checkpoint, so that a checkpoint never outruns its records. Returns
    whether the run came to its end (False: `stopping` asked it to stop; it saved first).
    """
    config, began = run.config, time.time()

    def record(number: int, metrics: dict[str, float]) -> dict[str, Any]:
        line = {"step": number, "time": time.time() - began, **metrics, **run.seconds}
        if run.ranks.main:
            run.folder.append_metrics(line)
            run.folder.update_status(step=number)
        return line

    if start == 1 and config.evaluate.at_start and run.benchmarks:
        with run.clock("evaluate"):
            metrics, _ = evaluate(run, 0)
        report(run, 0, record(0, metrics))
    for number in range(start, run.num_steps + 1):
        run.seconds.clear()
        run.ranks.on_main(run.folder.path.stat)  # one that was moved away must not begin again, empty
        run.meter.begin()
        metrics = step(run, number)
        metrics |= run.meter.metrics(metrics["response/tokens"], run.seconds)
        last, better = number == run.num_steps, False
        stop_early = run.ranks.any(stopping() or run.background.failed)
        if run.benchmarks and (last or (config.evaluate.every and number % config.evaluate.every == 0)):
            with run.clock("evaluate"):
                scores, mean = evaluate(run, number)
            metrics |= scores
            if better := mean > best[1]:
                best = (number, mean)
        line = record(number, metrics)
        if last or stop_early or better or (config.checkpoint.every and number % config.checkpoint.every == 0):
            save(run, number, best)
        report(run, number, line)
        if stop_early and not last:
            return False
    return True


def evaluate(run: Run, number: int) -> tuple[dict[str, float], float]:
    """Evaluates the student after step `number` and records every sample; returns the scores and the mean@k."""
    settings, ranks = run.config.evaluate, run.ranks
    sampling = Sampling(
        num_samples=settings.k,
        max_tokens=settings.max_response_length,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
    )
    own = answer_benchmarks(
        run.evaluation_sampler,
        {name: problems[ranks.rank :: ranks.size] for name, problems in run.benchmarks.items()},
        sampling,
        run.tokenizer,
        key=(run.config.seed, number, 1),
        grading_timeout=settings.grading_timeout,
        texts=settings.texts,
        clock=run.clock,
    )
    keys = [(name, problem.id) for name, problems in run.benchmarks.items() for problem in problems]
    order = {key: position for position, key in enumerate(keys)}
    answered = sorted(
        (problem for part in ranks.gather(own) for problem in part),
        key=lambda problem: order[problem.benchmark, problem.problem_id],
    )
    samples = [sample for problem in answered for sample in problem.samples]
    if ranks.main:
        run.folder.write_samples(number, samples, b"".join(problem.texts for problem in answered))
    scores = summarize(samples)
    return scores, scores[f"evaluate/mean@{settings.k}"]


def save(run: Run, number: int, best: tuple[int | None, float]) -> None:
    """Starts writing the checkpoint of step `number`; then prunes older ones as `checkpoint.keep` says.

    Raises:
        OSError: where the checkpoint before it could not be written.
    """
    folder, keep = run.folder.checkpoints, run.config.checkpoint.keep
    run.ranks.on_all(run.background.wait)  # one copy of the weights at a time
    progress = Progress(number, best[0], None if best[0] is None else best[1])
    write = checkpoint.resumable(run.learned, progress, run.ranks)

    def write_and_prune() -> None:
        write(step_folder(folder, number), run.background_ranks)
        run.background_ranks.on_main(lambda: prune(folder, keep=keep, best=best[0]))

    run.ranks.on_all(lambda: run.background.submit(write_and_prune))


def _mean(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].double().mean())
