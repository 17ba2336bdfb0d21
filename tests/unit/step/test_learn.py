"""Both learners: the order of their stages by hand, their gradients by enumeration in float64."""

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from transformers import PreTrainedModel

from opd import cli
from opd.check import config as check
from opd.check.objective_rules import BIASED
from opd.check.signal import has_weight
from opd.config.schema import CONF, Clip, RunConfig
from opd.data.batch import Rollout, TeacherScores, TokenScores
from opd.model.policy import Policy, Scorer
from opd.objective import divergence, loss, support
from opd.objective.divergence import Divergence, Mixed, share_beyond
from opd.objective.mixture import Mixture
from opd.objective.support import Support
from opd.step import terms
from opd.step.assemble import bind
from opd.step.batch import Batch
from opd.step.learn import Exact, Learner, Signal
from opd.step.terms import Advantage, Loss, Term, term
from opd.teacher.full_distributions import FullDistributions
from opd.teacher.local import LocalTeachers
from tests.covering import covering
from tests.unit.small import ALONE, rollout_of, root, tiny_qwen3

VOCABULARY, TEMPERATURE = 13, 0.7
SINGLE = Mixture(torch.ones(1, dtype=torch.float64), "probability")
SHARES = torch.tensor([0.6, 0.4], dtype=torch.float64)
MEAN = partial(loss.divisor, aggregation="token_mean")
TAILS, OF = ("renormalize", "bucket", "sampled", "drop"), ("teacher", "student", "union")
SUPPORTS = {
    "full": support.full(),
    **{f"{tail} {of}": support.topk(k=4, of=of, tail=tail) for tail in TAILS for of in OF},
}
# Every file of the group, as a run binds it.
NAMES = sorted(file.stem for file in (CONF / "divergence").glob("*.yaml"))
model = cache(tiny_qwen3)


@cache
def divergence_of(name: str) -> Divergence | Mixed:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return bind("divergence", cli.resolved(compose(f"divergence/{name}"))["divergence"])()


@cache
def base() -> RunConfig:
    cli.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = ["student.model=a", "teacher.models=[b]", "whitening=none", "batch_size=4", "samples_per_prompt=1"]
        return check.prepare(cli.resolved(compose("config", overrides=plain)))


def config(shaping: dict[str, Any] | None = None, signal: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    changed = {"shaping": replace(base().shaping, **(shaping or {})), "signal": {**base().signal, **(signal or {})}}
    return replace(base(), **changed, **changes)


# ---- PolicyGradient.prepare by hand: two responses, of two tokens and of one; what is masked holds anything


def by_hand(
    log_ratio: list[list[float]], beside_anchor: list[list[float]], one: Divergence | None = None, **fields: Any
) -> Batch:
    """A batch with these log-ratios of student to teacher and of student to anchor; NaN where masked."""
    rollout = rollout_of([[2], [3]], [[4, 5], [6]])
    junk = torch.where(rollout.mask, 0, torch.nan)
    ratio, anchor = torch.tensor(log_ratio) + junk, torch.tensor(beside_anchor) + junk
    student = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])
    fields = {"weight": torch.ones(2, 2), "keep": rollout.mask, "count": rollout.mask, "reward": None} | fields
    return Batch(
        own=rollout,
        rollout=rollout,
        student=TokenScores(student, torch.zeros(2, 2)),
        teachers=TeacherScores((student - ratio)[None], torch.zeros(1, 2, 2), {}),
        mixture=SINGLE,
        divergence=(one or divergence.reverse_kl()).at(rollout.mask, torch.zeros(2, 2)),
        anchor_logp=student - anchor,
        **fields,
    )


U, ANCHOR = [[1.0, -2.0], [-3.0, 0.0]], [[0.5, -1.0], [-1.0, 0.0]]


def prepared(batch: Batch, progress: float = 0.0, shaping: dict[str, Any] | None = None, **changes: Any):
    given = config(shaping, **changes)
    batch = replace(batch, extrapolation=given.shaping.extrapolation)
    return World().learner(given).prepare(batch, progress)


def valid(values: Tensor | None) -> list[float]:
    assert values is not None
    return [*values[0].tolist(), values[1, 0].item()]


# Each stage is added to those before it, in their order; the numbers are worked by hand.
STAGES = [
    # -u
    ({}, [-1, 2, 3]),
    # - 2 · log(student / anchor)
    ({"near_start": 2.0}, [-2, 4, 5]),
    # the first token of the first response answers for half of the second's
    ({"gamma": 0.5}, [0, 4, 5]),
    # halfway from 2 to 4 the weight is 3; the rewards are 1 and -1
    ({"reward": [2.0, 4.0]}, [3, 7, 2]),
    # their mean is 4
    ({"baseline": "batch"}, [-1, 3, -2]),
    ({"advantage_clip": 2.0}, [-1, 2, -2]),
    # mean -1/3, variance 26/9
    ({"whitening": "batch"}, [-2 / math.sqrt(26), 7 / math.sqrt(26), -5 / math.sqrt(26)]),
]


@pytest.mark.parametrize("last", range(len(STAGES)))
def test_the_stages_act_in_their_order(last: int):
    knobs = {key: value for stage, _ in STAGES[: last + 1] for key, value in stage.items()}
    top = {key: knobs.pop(key) for key in ("gamma", "whitening") if key in knobs}
    signal = {key: knobs.pop(key) for key in ("near_start", "reward") if key in knobs}
    reward = torch.tensor([1.0, -1.0]) if "reward" in signal else None
    batch, metrics = prepared(by_hand(U, ANCHOR, reward=reward), 0.5, knobs, signal=signal, **top)
    assert valid(batch.advantage) == pytest.approx(STAGES[last][1], abs=1e-6)
    clipped, whitened = "advantage_clip" in knobs, "whitening" in top
    assert metrics["shaping/clipped"] == pytest.approx(clipped / 3)
    assert metrics["whitening/mean"] == pytest.approx(-1 / 3 if whitened else 0)
    assert metrics["whitening/std"] == pytest.approx(math.sqrt(26) / 3 if whitened else 1)


def test_prefix_weight_uses_signal_before_credit():
    weight = torch.tensor([[1.0, 3.0], [0.5, 9.0]])
    batch, _ = prepared(
        by_hand(U, ANCHOR, weight=weight), 0.0, {"prefix_strength": 1.0},
        signal={"near_start": 2.0}, gamma=1.0, whitening="batch",
    )  # fmt: skip
    # The signal is [-2, 4] and [5]: a third of the first response's lies before its second token.
    assert valid(batch.weight) == pytest.approx([2, 5, 1])


def test_sequence_credit():
    batch, _ = prepared(by_hand(U, ANCHOR), credit="sequence", gamma=1.0)
    assert valid(batch.advantage) == [1, 1, 3]


def test_dropped_tokens_do_not_count_in_shaping():
    keep = torch.tensor([[True, False], [True, False]])
    batch, metrics = prepared(by_hand(U, ANCHOR, keep=keep), 0.0, {"advantage_clip": 2.0}, gamma=1.0)
    assert valid(batch.advantage)[::2] == [-1, 2] and metrics["shaping/clipped"] == 0.5
    batch, metrics = prepared(by_hand(U, ANCHOR, keep=keep), gamma=1.0, whitening="batch")
    assert valid(batch.advantage) == [-1, 0, 1]
    assert (metrics["whitening/mean"], metrics["whitening/std"]) == (1, 2)


def test_student_is_default_anchor():
    batch, _ = prepared(replace(by_hand(U, ANCHOR), anchor_logp=None), 0.0, {"extrapolation": 2.0})
    assert valid(batch.advantage) == [-2, 4, 6]


@pytest.mark.parametrize("name", ["reverse_kl", "hellinger", "jensen_shannon"])
def test_extrapolation_target(name: str):
    one, c = getattr(divergence, name)(), 1.25
    found, _ = prepared(by_hand(U, ANCHOR, one), 0.0, {"extrapolation": c})
    beside_anchor, log_ratio = torch.tensor(ANCHOR), torch.tensor(U)
    reference_beside_anchor = beside_anchor - log_ratio
    expected = one.advantage(beside_anchor - c * reference_beside_anchor)
    assert valid(found.advantage) == pytest.approx(valid(expected))
    assert valid(found.advantage) != pytest.approx(valid(one.advantage(log_ratio)))


def test_clamp_and_its_share():
    one = divergence.forward_kl().at(torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2)).clamped(1.5)
    batch, _ = prepared(replace(by_hand(U, ANCHOR), divergence=one))
    assert valid(batch.advantage) == pytest.approx([math.exp(-1) - 1, math.exp(1.5) - 1, math.exp(1.5) - 1])
    assert share_beyond(torch.tensor(U), batch.rollout.mask, 1.5) == pytest.approx(2 / 3)
    assert share_beyond(torch.tensor(U), batch.rollout.mask, None) == 0


# ---- gradients by enumeration


def distributions(one: PreTrainedModel, rollout: Rollout) -> list[Tensor]:
    """Log-probs [token, vocabulary] of each response, from unpadded forwards, differentiable."""
    found = []
    for row in range(len(rollout)):
        prompt, response = rollout.prompt[row][rollout.prompt_mask[row]], rollout.tokens[row][rollout.mask[row]]
        logits = one(torch.cat([prompt, response])[None]).logits[0] / TEMPERATURE
        found.append(logits[len(prompt) - 1 : len(prompt) + len(response) - 1].log_softmax(-1))
    return found


def scores_of(one: PreTrainedModel, rollout: Rollout) -> TokenScores:
    """As `Scorer.scores`, in float64."""
    logp, entropy = (torch.zeros(rollout.mask.shape, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        for row, log_p in enumerate(distributions(one, rollout)):
            response = rollout.tokens[row][rollout.mask[row]]
            logp[row][rollout.mask[row]] = log_p.gather(1, response[:, None])[:, 0]
            entropy[row][rollout.mask[row]] = -(log_p.exp() * log_p).sum(-1)
    return TokenScores(logp, entropy)


@pytest.fixture
def rollout() -> Rollout:
    return responses()


def responses() -> Rollout:
    generator = torch.Generator().manual_seed(1)

    def draw(lengths: list[int]) -> list[list[int]]:
        return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]

    return rollout_of(draw([3, 1, 5, 2, 4]), draw([2, 6, 1, 9, 4]))


def cut(batch: Batch, num_parts: int) -> list[Batch]:
    return list(batch.parts(num_parts, ALONE, MEAN))


def whole(batch: Batch) -> Batch:
    """The batch as one update, unless it is a part already."""
    return batch if batch.num_tokens is not None else cut(batch, 1)[0]


class World:
    """A student, its teachers (by their seeds; the student's own is 0), and both learners."""

    def __init__(self, *teachers: int, micro_batch_tokens: int = 10_000, logit_chunk: int = 5):
        memory = {"micro_batch_tokens": micro_batch_tokens, "logit_chunk": logit_chunk, "temperature": TEMPERATURE}
        self.student, self.models = (
            model(),
            [tiny_qwen3(seed=seed) if not seed else model(seed=seed) for seed in teachers],
        )
        self.policy = Policy(root(self.student), ALONE, **memory)
        scorers = [Scorer(root(one.requires_grad_(False)), ALONE, **memory) for one in self.models]
        self.teachers = LocalTeachers([lambda one=one: one for one in scorers], keep_hidden=True)

    def learner(self, given: RunConfig, where: Support | None = None) -> Learner:
        weights = {name: weight for name, weight in given.signal.items() if has_weight(weight)}
        chosen = {name: getattr(terms, name) for name in weights if where is None or name != "divergence"}
        exact = None if where is None else Exact(given, FullDistributions(self.policy, self.teachers), where)
        return Signal(given, self.policy, chosen, weights, exact)

    def batch(self, rollout: Rollout, one: Divergence | Mixed, mixture: Mixture = SINGLE, **fields: Any) -> Batch:
        hidden = self.teachers.score(rollout, range(len(self.models))).hidden
        plain = [scores_of(each, rollout) for each in self.models]
        logp, entropy = (torch.stack([getattr(each, name) for each in plain]) for name in ("logp", "entropy"))
        batch = Batch(
            own=rollout,
            rollout=rollout,
            student=scores_of(self.student, rollout),
            teachers=TeacherScores(logp, entropy, hidden),
            mixture=mixture,
            divergence=divergence.reverse_kl().at(rollout.mask, entropy[0]),
            weight=torch.ones(rollout.mask.shape, dtype=torch.float64),
            keep=rollout.mask,
            count=rollout.mask,
            anchor_logp=None,
            reward=None,
        )
        return replace(on(batch, one, mixture), **fields)

    def learn(self, learner: Learner, batch: Batch) -> tuple[float, list[Tensor]]:
        """The loss, and the gradients of the student's parameters, which are taken from them."""
        self.student.zero_grad(set_to_none=True)
        found = learner.backward(whole(learner.prepare(batch, 0.0)[0]))
        return found["loss"], self.gradients()

    def gradients(self) -> list[Tensor]:
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.student.parameters()]
        self.student.zero_grad(set_to_none=True)
        return found


def on(batch: Batch, one: Divergence | Mixed, mixture: Mixture = SINGLE) -> Batch:
    """The batch with another divergence and ensemble."""
    inside = (batch.rollout.tokens % 2 == 0) & batch.rollout.mask
    return replace(batch, mixture=mixture, divergence=one.at(inside, mixture.entropy(batch.teachers.entropy)))


def agree(found: list[Tensor], expected: list[Tensor], tolerance: float, scale: float = 1.0) -> None:
    largest = max(float(each.abs().max()) for each in expected)
    assert largest > 1e-6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(scale * one, other, rtol=0, atol=tolerance * largest)


def agree_in_expectation(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    """As `agree`, where each of the vocabulary's tokens was a response and counted as one in the denominator.

    The head's gradient, which comes last, does not go through the layers' norms, which work in float32.
    """
    agree(found[-1:], expected[-1:], tolerance, scale=VOCABULARY)
    agree(found, expected, 1e-6, scale=VOCABULARY)


LEARNERS: dict[str, Support | None] = {"sampled": None, "full": SUPPORTS["full"], "topk": SUPPORTS["sampled union"]}
SHAPED = {"whitening": "batch", "gamma": 0.5}


@cache
def its_own_teacher() -> "tuple[World, Batch]":
    world = World(0)
    return world, world.batch(responses(), divergence.reverse_kl())


# A biased form has no exact form, and is refused one.
EXACT = [name for name in NAMES if name not in BIASED]
OWN = [
    *((name, None) for name in NAMES),
    *((name, "full") for name in EXACT),
    *((name, f"{tail} {of}") for name, tail, of in covering(EXACT, TAILS, OF)),
]


@pytest.mark.parametrize(("name", "where"), OWN)
def test_self_teacher_has_zero_loss_and_gradient(name: str, where: str | None):
    world, batch = its_own_teacher()
    learner = world.learner(config(**(SHAPED if where is None else {})), where and SUPPORTS[where])
    found, gradients = world.learn(learner, on(batch, divergence_of(name)))
    # What is left of sums over the top K, made in another order, is a rounding error.
    tolerance = 0 if where in (None, "full") else 1e-13
    assert abs(found) <= tolerance and all(gradient.abs().max() <= tolerance for gradient in gradients)


@pytest.mark.parametrize("name", LEARNERS)
def test_self_teacher_has_entropy_gradient_only(name: str, rollout: Rollout):
    world = World(0)
    # What a filter leaves out keeps its entropy.
    batch = world.batch(rollout, divergence.reverse_kl(), keep=rollout.mask & (rollout.tokens % 2 == 0))
    found, gradients = world.learn(world.learner(config(signal={"entropy": 0.1}), LEARNERS[name]), batch)
    entropies = [-(log_p.exp() * log_p).sum() for log_p in distributions(world.student, rollout)]
    expected = -0.1 * torch.stack(entropies).sum() / rollout.mask.sum()
    expected.backward()
    assert found == pytest.approx(float(expected.detach()), rel=1e-6)
    agree(gradients, world.gradients(), 1e-6)


def padded(rollout: Rollout) -> Rollout:
    """With three more columns of nothing on the outer side of prompts and responses."""
    width = torch.nn.functional.pad
    fields = {name: width(getattr(rollout, name), (3, 0)) for name in ("prompt", "prompt_mask")}
    fields |= {name: width(getattr(rollout, name), (0, 3)) for name in ("tokens", "mask", "learned", "rollout_logp")}
    return replace(rollout, **fields)


def permuted(rollout: Rollout) -> Rollout:
    order = torch.tensor([3, 0, 4, 2, 1])
    return Rollout(**{name: value[order] for name, value in vars(rollout).items()})


CHANGES = {
    "padding": (padded, {}),
    "another order": (permuted, {}),
    "one response at a time": (lambda rollout: rollout, {"micro_batch_tokens": 1}),
    "small micro-batches and chunks": (lambda rollout: rollout, {"micro_batch_tokens": 20, "logit_chunk": 2}),
}


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("change", CHANGES)
def test_invariant_to_batch_layout(change: str, learner: str, rollout: Rollout):
    shaped = {"whitening": "sample", "gamma": 0.5} if learner == "sampled" else {}
    given = config(signal={"entropy": 0.1}, **shaped)
    rearrange, memory = CHANGES[change]
    results = []
    for world, lies in ((World(1, 2), rollout), (World(1, 2, **memory), rearrange(rollout))):
        batch = world.batch(lies, divergence_of("split"), Mixture(SHARES, "probability"))
        # Weights and what is kept go with the token, wherever it lies.
        weight = 0.5 + (lies.tokens % 5).double()
        keep = lies.mask & (lies.tokens % 4 != 0)
        batch = replace(batch, weight=weight, keep=keep)
        results.append(world.learn(world.learner(given, LEARNERS[learner]), batch))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    agree(results[1][1], results[0][1], 1e-12)


MIXTURES = {
    "single": SINGLE,
    "arithmetic": Mixture(SHARES, "probability"),
    "product": Mixture(SHARES, "log"),
    "advantage": Mixture(SHARES, "advantage"),
}
PROMPTS = [[2, 3], [5], [7, 4, 6, 2]]


def every_token(student: PreTrainedModel) -> tuple[Rollout, Tensor]:
    """Each prompt with every token of the vocabulary as its response, and the student's probability of it."""
    rollout = rollout_of(
        [p for p in PROMPTS for _ in range(VOCABULARY)], [[v] for _ in PROMPTS for v in range(VOCABULARY)]
    )
    return rollout, scores_of(student, rollout).logp.exp()


def one_each() -> Rollout:
    return rollout_of(PROMPTS, [[4]] * len(PROMPTS))


@cache
def enumerated(num_teachers: int) -> tuple[World, Batch, Batch]:
    """A batch of every token, weighed by its probability, and one of a response a prompt."""
    world = World(*range(1, 1 + num_teachers))
    rollout, probability = every_token(world.student)
    return (
        world,
        world.batch(rollout, divergence.reverse_kl(), weight=probability),
        world.batch(one_each(), divergence.reverse_kl()),
    )


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*BIASED, "split")])
def test_expected_sampled_gradient_is_exact(name: str, mixture: str):
    one, mixed = divergence_of(name), MIXTURES[mixture]
    world, every, each = enumerated(1 if mixture == "single" else 2)
    _, sampled = world.learn(world.learner(config()), on(every, one, mixed))
    _, exact = world.learn(world.learner(config(), SUPPORTS["full"]), on(each, one, mixed))
    agree_in_expectation(sampled, exact)


@pytest.mark.parametrize("name", BIASED)
def test_biased_form_gradient_differs_from_exact(name: str):
    (world, every, _), biased = enumerated(1), divergence_of(name)
    unbiased = replace(biased, weight=None)
    found = [world.learn(world.learner(config()), on(every, one))[1] for one in (biased, unbiased)]
    with pytest.raises(AssertionError):
        agree(found[0], found[1], 0.1)


def test_entropy_bonus_of_both_learners():
    world, every, each = enumerated(1)
    bonus = {}
    for name, where in LEARNERS.items():
        batch = every if where is None else each
        with_it, without = (
            world.learn(world.learner(config(signal={"entropy": c}), where), batch)[1] for c in (0.3, 0.0)
        )
        bonus[name] = [a - b for a, b in zip(with_it, without, strict=True)]
    entropies = torch.stack([-(log_p.exp() * log_p).sum() for log_p in distributions(world.student, one_each())])
    (-0.3 * entropies.mean()).backward()
    expected = world.gradients()
    for found in bonus.values():
        agree(found, expected, 1e-5)


def test_anchor_penalty_expectation():
    world, anchor = World(1), model(seed=3)
    rollout, probability = every_token(world.student)
    batch = world.batch(
        rollout, divergence.hellinger(), weight=probability, anchor_logp=scores_of(anchor, rollout).logp
    )
    near, free = (world.learn(world.learner(config(signal={"near_start": c})), batch)[1] for c in (0.4, 0.0))
    mine, theirs = (torch.cat(distributions(each, one_each())) for each in (world.student, anchor))
    (0.4 * divergence.reverse_kl().exact(mine, theirs.detach()).mean()).backward()
    agree_in_expectation([a - b for a, b in zip(near, free, strict=True)], world.gradients())


def test_extrapolation_expectation():
    """anchor · (teacher / anchor)^c, not normalised."""
    world, anchor, c = World(1), model(seed=3), 1.5
    rollout, probability = every_token(world.student)
    batch = world.batch(
        rollout, divergence.hellinger(), weight=probability, anchor_logp=scores_of(anchor, rollout).logp
    )
    _, found = world.learn(world.learner(config()), replace(batch, extrapolation=c))
    mine, teacher, start = (
        torch.cat(distributions(each, one_each())) for each in (world.student, world.models[0], anchor)
    )
    reference = (start + c * (teacher - start)).detach()
    weight = (mine.exp() * divergence.hellinger().advantage(mine - reference)).detach()
    (-(weight * mine).sum() / len(PROMPTS)).backward()
    agree_in_expectation(found, world.gradients())


@pytest.mark.parametrize("where", ["full", "drop union"])
def test_clamp_of_exact_gradient_and_its_metric(where: str, rollout: Rollout):
    world, one, clamp = World(1), divergence.forward_kl(), 2.0
    batch = world.batch(rollout, one)
    batch = replace(batch, divergence=batch.divergence.clamped(clamp))
    learner = world.learner(config({"log_ratio_clamp": clamp}), support.topk(k=VOCABULARY, of="union", tail="drop")
                            if where != "full" else support.full())  # fmt: skip
    metrics = learner.backward(whole(learner.prepare(batch, 0.0)[0]))
    found = world.gradients()
    mine, theirs = (torch.cat(distributions(each, rollout)) for each in (world.student, world.models[0]))
    ratio, p = (mine - theirs).detach(), mine.detach().exp()
    (-(p * one.advantage(ratio.clamp(-clamp, clamp)) * mine).sum() / len(mine)).backward()
    agree(found, world.gradients(), 1e-8)
    beyond = (p * (ratio.abs() > clamp)).sum(-1).mean()
    assert metrics["support/clamped_mass"] == pytest.approx(float(beyond), rel=1e-5) and 0.05 < beyond < 0.95


def test_filtered_token_stays_in_denominator(rollout: Rollout):
    world, one = World(1), divergence.jensen_shannon()
    keep = rollout.mask & (rollout.tokens % 2 == 0)
    batch = world.batch(rollout, one, keep=keep)
    found, gradients = world.learn(world.learner(config(signal={"entropy": 0.1}), SUPPORTS["full"]), batch)
    mine, theirs = (torch.cat(distributions(each, rollout)) for each in (world.student, world.models[0]))
    learned = (one.exact(mine, theirs.detach()) * keep[rollout.mask]).sum()
    expected = (learned + 0.1 * (mine.exp() * mine).sum()) / rollout.mask.sum()
    expected.backward()
    assert found == pytest.approx(float(expected.detach()), rel=1e-6)
    agree(gradients, world.gradients(), 1e-6)
    assert world.learn(world.learner(config(), SUPPORTS["full"]), replace(batch, keep=keep & False))[0] == 0


# ---- several updates a batch


def grouped(rollout: Rollout) -> Rollout:
    """Four responses of two prompts."""
    return replace(rollout.rows(slice(0, 4)), group=torch.tensor([0, 0, 1, 1]))


def test_parts_partition_responses(rollout: Rollout):
    world = World(1, 2)
    weights = torch.tensor([[0.9, 0.2, 0.5, 0.0], [0.1, 0.8, 0.5, 1.0]], dtype=torch.float64)
    batch = world.batch(grouped(rollout), divergence_of("split"), Mixture(weights, "probability"))
    batch, _ = world.learner(config(gamma=0.5)).prepare(batch, 0.0)
    parts = list(cut(batch, 2))
    assert [len(part.rollout) for part in parts] == [2, 2]
    joined = lambda of: torch.cat([of(part) for part in parts])  # noqa: E731
    for of in (
        lambda b: b.rollout.tokens, lambda b: b.rollout.mask, lambda b: b.rollout.group, lambda b: b.student.logp,
        lambda b: b.student.entropy, lambda b: b.weight, lambda b: b.keep, lambda b: b.count, lambda b: b.advantage,
        lambda b: b.teachers.logp.transpose(0, 1), lambda b: b.teachers.entropy.transpose(0, 1),
        lambda b: b.mixture.weights.T, lambda b: b.teachers.hidden[0], lambda b: b.teachers.hidden[1],
        *(lambda b, i=i: b.divergence.parts[i][1] for i in range(2)),
    ):  # fmt: skip
        assert torch.equal(joined(of), of(batch))
    for part in parts:
        alone = world.teachers.score(part.rollout, range(2)).hidden
        for index in range(2):
            torch.testing.assert_close(part.teachers.hidden[index], alone[index], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("aggregation", "expected"), [("token_mean", [3, 3, 2]), ("sequence_mean", [4, 2, 2])])
def test_part_denominators(aggregation: loss.Aggregation, expected: list[int]):
    """Two responses of two tokens and of one, then one of which all counts and one of which nothing does."""
    rollout = rollout_of([[2]] * 4, [[4, 5], [6], [7, 8, 9], [10, 11]])
    count = rollout.mask & (rollout.tokens < 9)
    plain = torch.zeros(rollout.mask.shape)
    batch = Batch(
        own=rollout,
        rollout=rollout,
        student=TokenScores(plain, plain),
        teachers=TeacherScores(plain[None], plain[None], {}),
        mixture=SINGLE,
        divergence=divergence.reverse_kl().at(rollout.mask, plain),
        weight=plain,
        keep=count & (rollout.tokens != 8),
        count=count,
        anchor_logp=None,
        reward=None,
    )
    parts = batch.parts(2, ALONE, partial(loss.divisor, aggregation=aggregation))
    found = [part.num_tokens[row, 0] for part in parts for row in range(2) if part.num_tokens is not None]
    assert found[:3] == expected


@pytest.mark.parametrize("name", ["full", "topk"])
def test_exact_gradient_of_each_part(name: str, rollout: Rollout):
    world, one = World(1), divergence.hellinger()
    learner = world.learner(config(), LEARNERS[name])
    both = world.batch(grouped(rollout), one)
    for part, rows in zip(cut(both, 2), (slice(0, 2), slice(2, 4)), strict=True):
        alone = world.batch(grouped(rollout).rows(rows), one)
        agree(world.learn(learner, part)[1], world.learn(learner, alone)[1], 1e-10)


SEVERAL = {"mini_batch_size": 1, "batch_size": 2, "clip": Clip(low=0.2, high=0.3)}


def test_first_update_is_plain_policy_gradient(rollout: Rollout):
    world = World(1)
    student = world.policy.scores(grouped(rollout))
    batch = world.batch(grouped(rollout), divergence.hellinger(), student=student)
    one, several = (world.learner(config(**changes)) for changes in ({"batch_size": 1, "mini_batch_size": 1}, SEVERAL))
    (first, *_) = cut(several.prepare(batch, 0.0)[0], 2)
    found = several.backward(first)["loss"], world.gradients()
    expected = one.backward(first)["loss"], world.gradients()
    agree(found[1], expected[1], 1e-6)
    # The losses have other values: a ratio of 1 stands where a log-prob stood.
    kept = (first.advantage * first.weight)[first.keep]
    assert found[0] == pytest.approx(-float(kept.mean()), rel=1e-5)


def test_later_updates_are_clipped(rollout: Rollout):
    world = World(1)
    rollout = grouped(rollout)
    learner = world.learner(config(signal={"entropy": 0.1}, **SEVERAL))
    # What the student was when it sampled: away from what it is now, by both sides of the range and less.
    generator, shape = torch.Generator().manual_seed(0), rollout.mask.shape
    moved = torch.tensor([-0.5, -0.1, 0.0, 0.1, 0.5]).double()[torch.randint(5, shape, generator=generator)]
    batch = world.batch(rollout, divergence.reverse_kl())
    batch = replace(
        batch,
        student=TokenScores(batch.student.logp - moved, batch.student.entropy),
        advantage=torch.randn(shape, generator=generator, dtype=torch.float64),
        weights={"entropy": 0.1},
    )
    assert batch.advantage is not None
    mask, a = rollout.mask, batch.advantage[rollout.mask]
    tokens = rollout.tokens[mask]
    mine = torch.cat(distributions(world.student, rollout))
    logp, ratio = mine.gather(1, tokens[:, None])[:, 0], moved[mask].exp()
    free = ~(((a > 0) & (ratio > 1.3)) | ((a < 0) & (ratio < 0.8)))
    assert 0 < free.sum() < len(free) and (~free & (a > 0)).any() and (~free & (a < 0)).any()
    expected = -(torch.where(free, ratio * a, 0) * logp).sum() / mask.sum()
    (expected + 0.1 * (mine.exp() * mine).sum() / mask.sum()).backward()
    wanted = world.gradients()
    metrics = learner.backward(whole(batch))
    agree(world.gradients(), wanted, 1e-5)
    gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.3) * a).mean()
    entropy = -(mine.exp() * mine).sum().detach() / mask.sum()
    assert metrics["loss"] == pytest.approx(-float(gain) - 0.1 * float(entropy), rel=1e-5)


# ---- the seam: terms of any origin, by doubles


def scripted(values: Tensor) -> Term:
    """An advantage that says what it is told to."""

    @term()
    def said(batch: Batch) -> Advantage:
        return Advantage(values)

    return said


@term()
def squared(batch: Batch) -> Loss:
    """A loss that is no linear function of the log-probs, over half of the tokens."""
    return Loss(batch.student.logp**2 + batch.student.entropy, batch.count & (batch.rollout.tokens % 2 == 0))


def test_credit_applies_to_token_advantages_only():
    plain = by_hand(U, ANCHOR)
    of_tokens, of_responses = torch.tensor([[1.0, 2.0], [4.0, torch.nan]]), torch.tensor([10.0, -10.0])
    terms = {"a": scripted(of_tokens), "b": scripted(of_responses), "absent": scripted(of_tokens / 0)}
    learner = Signal(config(gamma=0.5), World().policy, terms, {"a": [1.0, 3.0], "b": 0.5, "absent": [0.0, 0.0]}, None)
    batch, _ = learner.prepare(plain, 0.5)
    assert valid(batch.advantage) == [2 * (1 + 0.5 * 2) + 5, 2 * 2 + 5, 2 * 4 - 5]
    assert batch.weights == {"a": 2.0, "b": 0.5, "absent": 0.0}


def test_invariant_to_term_order():
    torch.manual_seed(0)
    terms = {name: scripted(torch.randn(2, 2)) for name in "abc"} | {name: scripted(torch.randn(2)) for name in "xyz"}
    weights = dict(zip(terms, torch.rand(6).tolist(), strict=True))
    orders = (terms, dict(reversed(terms.items())), dict(sorted(terms.items(), key=lambda one: weights[one[0]])))
    learners = [Signal(config(gamma=0.5), World().policy, each, weights, None) for each in orders]
    found = [learner.prepare(by_hand(U, ANCHOR), 0.5)[0].advantage for learner in learners]
    assert all(torch.equal(found[0], each) for each in found[1:])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("where", LEARNERS)
def test_gradient_is_sum_of_terms(where: str, updates: int, rollout: Rollout):
    """Divergence (sampled or over the vocabulary), a reward's policy gradient and a loss, by plain autograd."""
    world, four = World(1), grouped(rollout)
    reward = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    several = SEVERAL if updates == 2 else {}
    given, support = config(**several), LEARNERS[where]
    exact = None if support is None else Exact(given, FullDistributions(world.policy, world.teachers), support)
    chosen = {"reward": scripted(reward), "squared": squared}
    chosen |= {} if exact else {"divergence": terms.divergence}
    learner = Signal(given, world.policy, chosen, {"divergence": 0.7, "reward": [0.0, 0.6], "squared": 0.2}, exact)
    batch = world.batch(four, divergence.hellinger())
    part = cut(learner.prepare(batch, 0.5)[0], updates)[0]
    world.student.zero_grad(set_to_none=True)
    found, gradients = learner.backward(part)["loss"], world.gradients()
    here = part.rollout
    mine, theirs = (torch.cat(distributions(each, here)) for each in (world.student, world.models[0]))
    tokens, row = here.tokens[here.mask], torch.arange(len(here))[:, None].expand(here.mask.shape)[here.mask]
    logp = mine.gather(1, tokens[:, None])[:, 0]
    advantage, one = 0.3 * reward[row], divergence.hellinger()
    if exact is None:
        advantage = advantage + 0.7 * one.advantage((logp - theirs.gather(1, tokens[:, None])[:, 0]).detach())
    loss = -(advantage * (logp if updates == 1 else (logp - logp.detach()).exp())).sum()
    if support is not None:
        loss = loss + 0.7 * support.exact(one, mine, theirs.detach(), tokens).sum()
    entropy = -(mine.exp() * mine).sum(-1)
    loss = (loss + 0.2 * ((logp**2 + entropy) * (tokens % 2 == 0)).sum()) / len(tokens)
    loss.backward()
    assert found == pytest.approx(float(loss.detach()), rel=1e-6)
    agree(gradients, world.gradients(), 1e-6)
