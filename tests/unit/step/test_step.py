"""The step against the same step by hand: its metrics, what reaches the learner, and the gradient of each update."""

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from opd.check.signal import uses_anchor
from opd.config.schema import RunConfig
from opd.data.batch import Prompt, Sampling
from opd.data.prompts import batch_indices
from opd.model.load import load_model
from opd.records.run_dir import RunDir
from opd.step.assemble import assemble
from opd.step.batch import Batch
from opd.step.evaluation import evaluate
from opd.step.learn import Learner
from opd.step.loop import step
from opd.step.run import Run
from tests.unit.small import ALONE
from tests.unit.step.reference_step import At, Row, Step, by_hand, loss_by_hand
from tests.unit.step.scripted import END, ScriptedTeachers, config_of, response, says, script

TEMPERATURE = 0.8
SIGN, ONE = 21, 12  # ids of + and 1
CASES = {
    "ranked, matched and switched": [
        "ensemble=hard_switch", "filter=kl", "filter.p_min=30", "filter.p_max=90", f"filter.exclude_ids=[1,{SIGN}]",
        "signal.reward=[2.0,0.0]", "shaping.reward_baseline=group", "signal.entropy=0.1",
        "optim.schedule=linear",
    ],
    "updates of sequences": [
        "mini_batch_size=2", "clip.low=0.05", "clip.high=0.1", "loss=sequence_mean", "rollout_correction=tis",
        "ensemble=soft_switch", "filter=signed_kl", "filter.p_min=0", "filter.p_max=60", "filter.scope=group",
        f"filter.exclude_ids=[1,{ONE}]", "signal.reward=[0.0,1.5]", "shaping.reward_baseline=group",
        "shaping.pass_rate_power=0.5", "signal.entropy=0.05", "whitening=none",
    ],
    "all that shapes": [
        "mini_batch_size=1", "clip.low=0.2", "clip.high=0.3", "divergence=hellinger", "allow_heuristic=true",
        "gamma=0.5", "ensemble=advantage_mean", "filter=teacher_entropy", "filter.p_min=20", "filter.p_max=100",
        "filter.scope=sequence", "filter.denominator=kept", "filter.prefix_length=5", "rollout_correction=icepop",
        "shaping.anchor=ANCHOR", "signal.near_start=0.3", "shaping.extrapolation=1.2", "shaping.prefix_strength=1.0",
        "shaping.log_ratio_clamp=2.0", "shaping.baseline=group", "shaping.advantage_clip=1.0",
        "signal.reward=[1.0,1.0]", "optim.grad_clip=0.05",
    ],
    "a divergence on each side": [
        "ensemble=control_token", "divergence=split", "filter=partition", "filter.p_min=40", "allow_heuristic=true",
        "credit=sequence", "gamma=1.0", "whitening=group", "loss=sequence_mean", "signal.entropy=0.1",
        "shaping.pass_rate_power=1.0", f"filter.exclude_ids=[{ONE}]", "filter.exclude_special=true",
    ],
}  # fmt: skip


@pytest.fixture
def scripted(scripted_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], Run]:
    """The run with these overrides, its sampler and teachers scripted."""

    def run_with(overrides: Sequence[str]) -> Run:
        common = [f"rollout.temperature={TEMPERATURE}", "rollouts.every=1", "rollouts.num=100"]
        given = [each.replace("ANCHOR", str(scripted_models / "anchor")) for each in overrides]
        script(monkeypatch)
        run = assemble(config_of(scripted_models, *common, *given), RunDir(tmp_path / "run"), ALONE)
        run.teachers = ScriptedTeachers()
        return run

    return run_with


@dataclass
class Watched:
    """The learner, and what reaches it."""

    learner: Learner
    given: list[Batch] = field(default_factory=list)
    prepared: list[Batch] = field(default_factory=list)
    parts: list[Batch] = field(default_factory=list)

    def prepare(self, batch: Batch, progress: float) -> tuple[Batch, dict[str, float]]:
        prepared, metrics = self.learner.prepare(batch, progress)
        self.given.append(batch)
        self.prepared.append(prepared)
        return prepared, metrics

    def backward(self, batch: Batch) -> dict[str, float]:
        self.parts.append(batch)
        return self.learner.backward(batch)


@dataclass
class Update:
    """The weights before an optimizer's step, and the gradient that it is given."""

    weights: dict[str, Tensor]
    gradient: list[Tensor]


def watch(run: Run, patch: pytest.MonkeyPatch) -> tuple[Watched, list[Update]]:
    watched, updates, take = Watched(run.learner), [], run.optimizer.step
    run.learner = watched

    def taken(number: int) -> dict[str, float]:
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in run.optimizer.parameters]
        updates.append(Update(copy.deepcopy(run.policy.model.state_dict()), gradient))
        return take(number)

    patch.setattr(run.optimizer, "step", taken)
    return watched, updates


def scores(model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The log-prob of each token and the entropy there, from one plain forward pass."""
    if not tokens:
        return torch.zeros(0), torch.zeros(0)
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    logp = (logits / TEMPERATURE).log_softmax(-1)
    return logp.gather(1, torch.tensor(tokens)[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def prompts_of(run: Run, number: int) -> list[Prompt]:
    order = batch_indices(len(run.prompts), batch_size=4, step=number - 1, seed=run.config.seed)
    return [run.prompts[index] for index in order]


def read_by_the_student(run: Run, place: int, prompt: Prompt) -> list[int]:
    told = run.config.method("ensemble") == "control_token"
    return [*(run.tokenizer.encode(f"<|teacher-{place % 3}|>") if told else []), *prompt.token_ids]


def rows_of(run: Run, number: int) -> list[Row]:
    """The step's responses with everybody's numbers, before anything is learned."""
    knobs, anchor, found = run.config.shaping, run.policy.model, []
    if uses_anchor(run.config):
        anchor = load_model(knobs.anchor, revision=None, dtype="float32", key="shaping.anchor").double()
    for place, prompt in enumerate(prompts_of(run, number)):
        read = read_by_the_student(run, place, prompt)
        for sample in range(3):
            tokens, drifts = response(prompt, (run.config.seed, number), sample)
            with torch.no_grad():
                logp, entropy = (each.tolist() for each in scores(run.policy.model, read, tokens))
                start = scores(anchor, read, tokens)[0].tolist()
            found.append(
                Row(
                    prompt=place,
                    read=read,
                    tokens=tokens,
                    rollout=[p + drift for p, drift in zip(logp, drifts, strict=True)],
                    student=list(zip(logp, entropy, strict=True)),
                    teachers=[says(teacher, prompt.token_ids, tokens) for teacher in range(3)],
                    anchor=start,
                    right=run.tokenizer.decode(tokens, skip_special_tokens=True) == f"#### {prompt.answer}",
                    truncated=tokens[-1:] != [END],
                )
            )
    return found


def gradients(config: RunConfig, expected: Step, part: int, rows: list[Row], model: PreTrainedModel):
    """The loss of an update and its gradient, by hand."""
    logp, entropy = {}, {}
    for i, row in enumerate(rows):
        for t, found in enumerate(zip(*scores(model, row.read, row.tokens), strict=True)):
            logp[i, t], entropy[i, t] = found
    loss = loss_by_hand(config, expected, part, logp, entropy)
    return float(loss.detach()), torch.autograd.grad(loss, list(model.parameters()))


def at(tokens: Iterable[At], values: Any) -> list[float]:
    return [float(values[x]) for x in sorted(tokens)]


@pytest.mark.parametrize("number", [2, 5])
@pytest.mark.parametrize("case", CASES)
def test_step_matches_reference(case: str, number: int, scripted, monkeypatch: pytest.MonkeyPatch):
    run = scripted(CASES[case])
    config, model = run.config, copy.deepcopy(run.policy.model)
    rows = rows_of(run, number)
    expected = by_hand(config, number, run.num_steps, rows)
    every = [(i, t) for i, row in enumerate(rows) for t in range(len(row.tokens))]
    assert {len(row.tokens) > 0 for row in rows} == {row.right for row in rows} == {True, False}
    assert set() < expected.learned < set(every)

    watched, updates = watch(run, monkeypatch)
    metrics = step(run, number)

    # what is asked, of whom
    ((_, sampling, key),) = run.sampler.asked
    assert key == (config.seed, number) and run.sampler.synced == 1
    assert sampling == Sampling(num_samples=3, max_tokens=16, temperature=TEMPERATURE, top_p=1.0, top_k=0)
    progress = (number - 1) / 6
    needed = {"hard_switch": (int(3 * progress),), "soft_switch": (int(2 * progress), int(2 * progress) + 1)}
    assert run.teachers.asked == [needed.get(config.method("ensemble"), (0, 1, 2))]

    # what reaches the learner
    ((given,), (prepared,)) = watched.given, watched.prepared
    assert {x for x in every if given.keep[x]} == expected.learned and prepared.keep is given.keep
    assert {x for x in every if given.count[x]} == expected.counted and prepared.count is given.count
    assert prepared.advantage is not None
    assert at(expected.learned, prepared.advantage) == pytest.approx(at(expected.learned, expected.advantage), abs=1e-5)
    assert at(expected.learned, prepared.weight) == pytest.approx(at(expected.learned, expected.weight), abs=1e-5)
    num_updates = config.batch_size // config.mini_batch_size
    assert len(watched.parts) == len(updates) == num_updates
    divisors = torch.cat([part.num_tokens for part in watched.parts if part.num_tokens is not None])
    assert [float(divisors[i, 0]) for i, _ in sorted(expected.counted)] == at(expected.counted, expected.divisor)

    # what is learned
    losses, norms = [], []
    for part, update in enumerate(updates):
        model.load_state_dict(update.weights)
        loss, gradient = gradients(config, expected, part, rows, model)
        largest = max(1e-4, *(float(each.abs().max()) for each in gradient))
        for one, other in zip(update.gradient, gradient, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * largest)
        losses.append(loss)
        norms.append(float(torch.cat([each.flatten() for each in gradient]).norm()))
    assert max(norms) > 1e-3
    rate = 0.01 * (1 - progress) if config.optim.schedule == "linear" else 0.01
    updated = {"loss": sum(losses) / num_updates, "grad_norm": sum(norms) / num_updates, "lr": rate}
    assert metrics == pytest.approx(expected.metrics | updated, rel=1e-5, abs=1e-6)

    # what is shown of it
    record = json.loads(run.folder.rollouts_file(number).read_text())["responses"]
    assert [one["prompt_id"] for one in record] == [prompt.id for prompt in prompts_of(run, number) for _ in range(3)]
    assert [[(i, t) in expected.learned for t in range(len(row.tokens))] for i, row in enumerate(rows)] == [
        one["learned"] for one in record
    ]
    drawn = [record[i]["advantage"][t] for i, t in sorted(expected.learned)]
    assert drawn == pytest.approx(at(expected.learned, expected.advantage), rel=1e-4, abs=1e-5)


def test_evaluation_keys_differ_by_step_and_from_training(scripted):
    run = scripted(["ensemble=arithmetic", "seed=3", "evaluate.max_response_length=9"])
    run.folder.write_manifest({})
    found = {number: evaluate(run, number, lambda: False) for number in (2, 5)}
    assert [key for *_, key in run.sampler.asked] == [(3, 2, 1), (3, 5, 1)]
    assert [asked for _, asked, _ in run.sampler.asked] == 2 * [Sampling(3, 9, 0.7, 0.9, 0)]
    problems = run.benchmarks["arithmetic"]
    for number, metrics in found.items():
        assert metrics is not None
        rows = [(problem, n, response(problem, (3, number, 1), n)[0]) for problem in problems for n in range(3)]
        right = [run.tokenizer.decode(t, skip_special_tokens=True) == f"#### {p.answer}" for p, _, t in rows]
        assert 0 < sum(right) < len(right)
        assert metrics["evaluate/mean@3"] == pytest.approx(sum(right) / len(right))
        samples = [json.loads(line) for line in run.folder.evaluations()[number].read_text().splitlines()]
        assert [(one["problem_id"], one["sample"]) for one in samples] == [(p.id, n) for p, n, _ in rows]
        assert [(one["correct"], one["num_tokens"]) for one in samples] == [
            (correct, len(tokens)) for correct, (*_, tokens) in zip(right, rows, strict=True)
        ]
    step(run, 2)
    assert run.sampler.asked[-1][-1] == (3, 2)
