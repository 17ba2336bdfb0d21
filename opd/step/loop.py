"""The step, then the loop.

prompts → rollout → teacher scores → ensemble → divergence → filter → rollout_correction → loss → optimizer
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from torch import Tensor, isin

from opd.checkpoint import store as checkpoint
from opd.checkpoint.steps import Progress, prune, step_folder
from opd.data.batch import Prompt
from opd.data.prompts import batch_indices
from opd.errors import UserError
from opd.objective.divergence import share_beyond
from opd.objective.filter import TokenSignals, metrics as filter_metrics
from opd.objective.mixture import Mixture, Rows
from opd.objective.rollout_correction import metrics as correction_metrics
from opd.records.answers import forget
from opd.records.files import without_nan
from opd.step.batch import Batch
from opd.step.benchmarks import grade_rollout
from opd.step.evaluation import Best, better, evaluate
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
    if len(run.unused_ids):
        metrics["response/unused_ids"] = _mean(isin(rollout.tokens, run.unused_ids), rollout.mask)
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
    run: Run,
    *,
    start: int,
    best: Best,
    unfinished: dict[str, Any] | None,
    stopping: Callable[[], bool],
    report: Callable,
) -> bool:
    """Steps `start`…num_steps with their checkpoints, evaluations and records.

    A step's checkpoint comes before its evaluation and holds its line of metrics, which is recorded with the scores.
    Records of other steps are written before their checkpoint, so that a checkpoint never outruns them. `unfinished` is
    the line of step `start - 1` where its evaluation is due. Returns whether the run came to its end (False: `stopping`
    asked it to stop; it saved first).
    """
    config, began = run.config, time.time()
    should_stop = lambda: stopping() or run.background.failed  # noqa: E731

    def record(number: int, line: dict[str, Any]) -> None:
        if run.ranks.main:
            run.folder.append_metrics(line)
            run.folder.update_status(step=number)
            if number:  # those of step 0 stay until there is a checkpoint
                forget(run.folder.answers_folder(number))

    def evaluated(number: int, line: dict[str, Any]) -> bool:
        """Whether the evaluation came to its end, and is recorded with the line."""
        nonlocal best
        with run.clock("evaluate"):
            scores = evaluate(run, number, should_stop)
        if scores is None:
            return False
        best = better(best, number, scores, run)
        line = {**line, **scores, **run.seconds}
        record(number, line)
        report(run, number, line)
        return True

    if run.ranks.any(should_stop()):
        return False
    if unfinished is not None and not evaluated(start - 1, unfinished):
        return False
    if start == 1 and config.evaluate.at_start and run.benchmarks:
        run.seconds.clear()
        if not evaluated(0, {"step": 0, "time": time.time() - began}):
            return False
    for number in range(start, run.num_steps + 1):
        run.seconds.clear()
        run.ranks.on_main(run.folder.path.stat)  # one that was moved away must not begin again, empty
        run.meter.begin()
        metrics = step(run, number)
        metrics |= run.meter.metrics(metrics["response/tokens"], run.seconds)
        line = {"step": number, "time": time.time() - began, **metrics, **run.seconds}
        last, stop = number == run.num_steps, run.ranks.any(should_stop())
        due = bool(run.benchmarks) and (last or _every(config.evaluate.every, number))
        if not due:
            record(number, line)
        if last or stop or due or _every(config.checkpoint.every, number):
            save(run, number, best, line if due else None)
        if not due:
            report(run, number, line)
        if stop and (due or not last):
            return False
        if due and not evaluated(number, line):
            return False
    run.ranks.on_all(run.background.wait)
    run.ranks.on_main(lambda: prune(run.folder.checkpoints, keep=config.checkpoint.keep, best=best[0]))
    return True


def _every(interval: int, number: int) -> bool:
    return interval > 0 and number % interval == 0


def save(run: Run, number: int, best: Best, line: dict[str, Any] | None) -> None:
    """Starts writing the checkpoint of step `number`; then prunes older ones as `checkpoint.keep` says. `line` is that
    of `Progress`.

    Raises:
        OSError: where the checkpoint before it could not be written.
    """
    folder, keep = run.folder.checkpoints, run.config.checkpoint.keep
    run.ranks.on_all(run.background.wait)  # one copy of the weights at a time
    progress = Progress(number, best[0], None if best[0] is None else best[1], line and without_nan(line))
    write = checkpoint.resumable(run.learned, progress, run.ranks)

    def write_and_prune() -> None:
        write(step_folder(folder, number), run.background_ranks)
        run.background_ranks.on_main(lambda: prune(folder, keep=keep, best=best[0]))
        run.background_ranks.on_main(lambda: forget(run.folder.answers_folder(0)))

    run.ranks.on_all(lambda: run.background.submit(write_and_prune))


def _mean(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].double().mean())
