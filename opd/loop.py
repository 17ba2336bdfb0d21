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
from opd.batch import Prompt, Sampling, TokenScores
from opd.config import RunConfig
from opd.data.prompts import batch_indices
from opd.engine import checkpoint
from opd.engine.optim import Optimizer
from opd.engine.policy import Policy
from opd.engine.rollout import Sampler
from opd.engine.teacher import LocalTeachers
from opd.errors import UserError
from opd.objective.advantage import discounted_return, whiten
from opd.objective.divergence import Divergence, Mixed
from opd.objective.filter import TokenSignals
from opd.objective.loss import entropy_bonus, policy_gradient
from opd.objective.mixture import BoundEnsemble, Rows
from opd.objective.rollout_correction import metrics as mismatch
from opd.records import RunDir


@dataclass
class Run:
    """Everything that a step uses. The method's stages carry the names of their config groups."""

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
    divergence: Divergence | Mixed
    ensemble: BoundEnsemble
    filter: Callable
    rollout_correction: Callable
    loss: Callable
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Adds the wall time of the block to `time/<stage>` of this step."""
        start = time.perf_counter()
        yield
        self.seconds[f"time/{stage}"] = self.seconds.get(f"time/{stage}", 0.0) + time.perf_counter() - start


def step(run: Run, number: int) -> dict[str, float]:
    """One optimizer step, the `number`-th (from 1), strictly on-policy; returns its metrics."""
    config, progress = run.config, (number - 1) / run.num_steps
    indices = batch_indices(len(run.prompts), batch_size=config.batch_size, step=number - 1, seed=config.seed)
    prompts = [run.prompts[index] for index in indices]
    with run.clock("rollout"):
        rollout = run.sampler.sample(prompts, run.rollout, key=(config.seed, number))
    with run.clock("teacher"):
        teachers = run.teachers.score(rollout, run.ensemble.needed(progress))
    with run.clock("student"):
        student = run.policy.scores(rollout)

    routed = run.ensemble.assign([prompt.domain for prompt in prompts], (config.seed, number))
    teacher = None if routed is None else torch.tensor(routed)[rollout.group]
    mixture = run.ensemble.mixture(
        progress, Rows(teacher, rollout.group, rollout.mask, teachers.logp, teachers.entropy)
    )
    log_ratio = student.logp - mixture.reference(teachers.logp)
    teacher_entropy = mixture.entropy(teachers.entropy)
    signals = TokenSignals(log_ratio, student.entropy, teacher_entropy, exact_kl=None)
    filtered = run.filter(signals, rollout.mask, rollout.group)
    weight, matched = run.rollout_correction(student.logp, rollout.rollout_logp, rollout.mask)
    keep, count = filtered.keep & matched, filtered.count & matched
    divergence = run.divergence.at(filtered.inside, teacher_entropy)
    signal = mixture.advantage(divergence.advantage, student.logp, teachers.logp)
    returns = discounted_return(signal, keep, config.gamma)
    advantage, mean, std = whiten(returns, keep, config.whitening, rollout.group)
    loss, grad_logp, grad_entropy = gradients(run, student, advantage, weight, keep, count)

    with run.clock("backward"):
        run.policy.backward(rollout, grad_logp, grad_entropy)
    with run.clock("optimizer"):
        update = run.optimizer.step(number)
    with run.clock("rollout"):
        run.sampler.sync()
    metrics = {
        "loss": loss,
        **update,
        "divergence/reverse_kl": _mean(log_ratio, rollout.mask),
        "divergence/value": _mean(divergence.value(log_ratio), rollout.mask),
        "filter/kept": _share(filtered.keep, rollout.mask),
        "rollout_correction/kept": _share(keep, filtered.keep),
        "whitening/mean": float(mean),
        "whitening/std": float(std),
        "entropy/student": _mean(student.entropy, rollout.mask),
        "entropy/teacher": _mean(teacher_entropy, rollout.mask),
        "response/length": float(rollout.mask.sum(1).float().mean()),
        "response/truncated": float(rollout.truncated.float().mean()),
        "response/tokens": float(rollout.mask.sum()),
    }
    correction = mismatch(student.logp, rollout.rollout_logp, rollout.mask, weight, matched)
    metrics |= {f"rollout_correction/{name}": value for name, value in correction.items()}
    for name in ("loss", "grad_norm"):
        if not math.isfinite(metrics[name]):
            raise UserError(
                f"step {number}: {name} is {metrics[name]}, so the student was left as it was before this step; "
                "lower optim.lr, or choose a rollout_correction or divergence that bounds the weights"
            )
    return metrics


def gradients(
    run: Run, student: TokenScores, advantage: Tensor, weight: Tensor, keep: Tensor, count: Tensor
) -> tuple[float, Tensor, Tensor | None]:
    """The loss and its derivatives by the student's log-probs and entropies, over the whole batch at once.

    They are backpropagated through the model afterwards, so no split into micro-batches can change a denominator.
    """
    entropy_coef = run.config.entropy_coef
    logp, entropy = student.logp.clone().requires_grad_(), student.entropy.clone().requires_grad_()
    num_tokens = run.loss(count, int(count.sum()), int(count.any(1).sum()))
    loss = policy_gradient(logp, advantage, weight, keep, num_tokens)
    loss = loss + entropy_bonus(entropy, count, num_tokens, entropy_coef=entropy_coef)
    grad_logp, grad_entropy = torch.autograd.grad(loss, [logp, entropy])
    return float(loss.detach()), grad_logp, grad_entropy if entropy_coef else None


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


def _share(part: Tensor, mask: Tensor) -> float:
    return float((part & mask).sum() / mask.sum().clamp(min=1))
