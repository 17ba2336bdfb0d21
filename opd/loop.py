"""The step, then the loop.

prompts → rollout → teacher scores → ensemble → divergence → filter → rollout_correction → loss → optimizer
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from opd.answers import answer_benchmarks, summarize
from opd.batch import Prompt, Rollout, Sampling, TeacherScores
from opd.config import RunConfig
from opd.data.control import Control
from opd.data.prompts import batch_indices
from opd.engine import checkpoint
from opd.engine.optim import Optimizer
from opd.engine.policy import Policy
from opd.engine.rollout import Sampler
from opd.engine.teacher import LocalTeachers
from opd.errors import UserError
from opd.learn import Batch, Learner
from opd.objective.divergence import Divergence, Mixed, share_beyond
from opd.objective.filter import TokenSignals
from opd.objective.filter import metrics as kept
from opd.objective.mixture import BoundEnsemble, Mixture, Rows
from opd.objective.rollout_correction import metrics as mismatch
from opd.records import RunDir


@dataclass
class Run:
    """Everything that a step uses. The method's stages carry the names of their config groups.

    `anchor` gives the anchor's log-probs of a rollout, `reward` its rewards, `reference` the ensemble's log-probs,
    entropies and, where they are asked for, exact KL; each None, or nothing, where no knob wants it.
    """

    config: RunConfig
    folder: RunDir
    num_steps: int
    prompts: Sequence[Prompt]
    benchmarks: dict[str, list[Prompt]]
    tokenizer: PreTrainedTokenizerBase
    policy: Policy
    teachers: LocalTeachers
    sampler: Sampler
    optimizer: Optimizer
    rollout: Sampling
    control: Control
    divergence: Divergence | Mixed
    ensemble: BoundEnsemble
    reference: Callable[[Rollout, TeacherScores, Mixture], tuple[Tensor, Tensor, Tensor | None]]
    eligible: Callable[[Tensor, Tensor], Tensor]
    filter: Callable
    rollout_correction: Callable
    anchor: Callable[[Rollout], Tensor | None]
    reward: Callable[[Rollout, Sequence[Prompt]], tuple[Tensor | None, Tensor | float, dict[str, float]]]
    learner: Learner
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Adds the wall time of the block to `time/<stage>` of this step."""
        start = time.perf_counter()
        yield
        self.seconds[f"time/{stage}"] = self.seconds.get(f"time/{stage}", 0.0) + time.perf_counter() - start


def step(run: Run, number: int) -> dict[str, float]:
    """One batch, the `number`-th (from 1), sampled from the newest student and learned; returns its metrics."""
    config, progress, key = run.config, (number - 1) / run.num_steps, (run.config.seed, number)
    indices = batch_indices(len(run.prompts), batch_size=config.batch_size, step=number - 1, seed=config.seed)
    prompts = [run.prompts[index] for index in indices]
    routed = run.ensemble.assign([prompt.domain for prompt in prompts], key)
    with run.clock("rollout"):
        rollout = run.sampler.sample(run.control.shown(prompts, routed), run.rollout, key=key)
    with run.clock("teacher"):
        teachers = run.teachers.score(run.control.asked(rollout, prompts), run.ensemble.needed(progress))
        anchor_logp = run.anchor(rollout)
    with run.clock("student"):
        student = run.policy.scores(rollout)
    with run.clock("reward"):
        reward, prompt_weight, rewarded = run.reward(rollout, prompts)

    teacher = None if routed is None else torch.tensor(routed)[rollout.group]
    mixture = run.ensemble.mixture(
        progress, Rows(teacher, rollout.group, rollout.mask, teachers.logp, teachers.entropy)
    )
    with run.clock("teacher"):
        reference_logp, teacher_entropy, exact_kl = run.reference(rollout, teachers, mixture)
    log_ratio = student.logp - reference_logp
    allowed = run.eligible(rollout.mask, rollout.tokens)
    signals = TokenSignals(log_ratio, student.entropy, teacher_entropy, exact_kl)
    filtered = run.filter(signals, allowed, rollout.group)
    weight, matched = run.rollout_correction(student.logp, rollout.rollout_logp, rollout.mask)
    divergence = run.divergence.at(filtered.inside, teacher_entropy).clamped(config.shaping.log_ratio_clamp)
    batch, prepared = run.learner.prepare(
        Batch(
            rollout=rollout,
            student=student,
            teachers=teachers,
            mixture=mixture,
            divergence=divergence,
            weight=weight * prompt_weight,
            keep=filtered.keep & matched,
            count=filtered.count & matched,
            anchor_logp=anchor_logp,
            reward=reward,
        ),
        progress,
    )
    metrics = update(run, batch, number) | prepared | rewarded
    with run.clock("rollout"):
        run.sampler.sync()

    metrics |= {
        "divergence/reverse_kl": _mean(log_ratio, rollout.mask),
        "divergence/value": _mean(divergence.value(log_ratio), rollout.mask),
        "divergence/clamped": share_beyond(log_ratio, rollout.mask, config.shaping.log_ratio_clamp),
        "entropy/student": _mean(student.entropy, rollout.mask),
        "entropy/teacher": _mean(teacher_entropy, rollout.mask),
        "response/length": float(rollout.mask.sum(1).float().mean()),
        "response/truncated": float(rollout.truncated.float().mean()),
        "response/tokens": float(rollout.mask.sum()),
    }
    shares = kept(rollout.mask, allowed, filtered, matched)
    correction = mismatch(student.logp, rollout.rollout_logp, rollout.mask, weight, matched)
    metrics |= {f"filter/{name}": value for name, value in shares.items()}
    return metrics | {f"rollout_correction/{name}": value for name, value in correction.items()}


def update(run: Run, batch: Batch, number: int) -> dict[str, float]:
    """The optimizer's updates of step `number`, one for each `mini_batch_size` prompts; metrics are their means.

    Raises:
        UserError: where a loss or gradient is not a finite number; that update was not made.
    """
    found: list[dict[str, float]] = []
    for part in batch.parts(run.config.mini_batch_size):
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
        found.append(metrics)
    return {name: sum(each[name] for each in found) / len(found) for name in found[0]}


def loop(run: Run, *, start: int, best: tuple[int | None, float], stopping: Callable[[], bool], say: Callable) -> bool:
    """Steps `start`…num_steps with their evaluations, records and checkpoints.

    Records of a step are written before its checkpoint, so that a checkpoint never outruns its records. Returns
    whether the run came to its end (False: `stopping` asked it to leave; it saved first).
    """
    config, began = run.config, time.time()
    if start == 1 and config.evaluate.at_start and run.benchmarks:
        metrics, _ = examine(run, 0)
        run.folder.append_metrics({"step": 0, "time": time.time() - began, **metrics, **run.seconds})
        say(run, 0, metrics)
    for number in range(start, run.num_steps + 1):
        run.seconds.clear()
        metrics = step(run, number)
        last, leaving, better = number == run.num_steps, stopping(), False
        if run.benchmarks and (last or (config.evaluate.every and number % config.evaluate.every == 0)):
            scores, score = examine(run, number)
            metrics |= scores
            if better := score > best[1]:
                best = (number, score)
        run.folder.append_metrics({"step": number, "time": time.time() - began, **metrics, **run.seconds})
        run.folder.update_status(step=number)
        if last or leaving or better or (config.checkpoint.every and number % config.checkpoint.every == 0):
            save(run, number, best)
        say(run, number, metrics)
        if leaving and not last:
            return False
    return True


def examine(run: Run, number: int) -> tuple[dict[str, float], float]:
    """Evaluates the student after step `number` and records every sample; returns the scores and the mean@k."""
    settings = run.config.evaluate
    sampling = Sampling(
        num_samples=settings.k,
        max_tokens=settings.max_response_length,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
    )
    samples = answer_benchmarks(
        run.sampler,
        run.benchmarks,
        sampling,
        run.tokenizer,
        key=(run.config.seed, number, 1),
        grading_timeout=settings.grading_timeout,
        clock=run.clock,
    )
    run.folder.write_samples(number, samples)
    scores = summarize(samples)
    return scores, scores[f"evaluate/mean@{settings.k}"]


def save(run: Run, number: int, best: tuple[int | None, float]) -> None:
    """The checkpoint of step `number`; older ones leave as `checkpoint.keep` says."""
    folder = run.folder.checkpoints
    state = {"step": number, "best_step": best[0], "best_score": None if best[0] is None else best[1]}
    checkpoint.save(checkpoint.step_folder(folder, number), run.policy.model, run.tokenizer, run.optimizer, state)
    checkpoint.prune(folder, keep=run.config.checkpoint.keep, best=best[0])


def _mean(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].double().mean())
