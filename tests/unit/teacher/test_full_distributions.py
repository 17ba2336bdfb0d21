"""Whole distributions against plain enumeration: full logits from unpadded forwards, autograd, float64."""

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from opd.data.batch import Rollout, TeacherScores
from opd.model.forward import micro_batches, spread, token_index
from opd.model.policy import Policy, Scorer
from opd.objective import divergence, support
from opd.objective.divergence import Chosen
from opd.objective.mixture import Mixture
from opd.objective.support import Support
from opd.teacher.full_distributions import NUMBERS, FullDistributions
from opd.teacher.local import LocalTeachers
from tests.unit.small import ALONE, rollout_of, root, tiny_qwen3

STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.7, 1.3
DIVERGENCES = {
    "reverse_kl": divergence.reverse_kl,
    "forward_kl": divergence.forward_kl,
    "jensen_shannon": divergence.jensen_shannon,
    "hellinger": divergence.hellinger,
    "skew_kl": partial(divergence.skew_kl, alpha=0.1),
    "total_variation": divergence.total_variation,
    "split": partial(divergence.split, inside=divergence.reverse_kl(), outside=divergence.forward_kl()),
}
SUPPORTS = {
    "full": support.full(),
    **{
        f"topk {tail} {of}": support.topk(k=4, of=of, tail=tail)
        for tail, of in (("renormalize", "teacher"), ("bucket", "union"), ("sampled", "student"), ("drop", "teacher"))
    },
}
SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
# Of the five responses of the fixture.
ROUTED = torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 2, 0]), 3).T.double()
BLENDED = torch.tensor([[0.5, 0.0, 1.0, 0.2, 0.3], [0.5, 0.4, 0.0, 0.2, 0.3], [0.0, 0.6, 0.0, 0.6, 0.4]]).double()
MIXTURES = {
    "single": Mixture(torch.ones(1, dtype=torch.float64), "probability"),
    "arithmetic": Mixture(SHARES, "probability"),
    "product": Mixture(SHARES, "log"),
    "geometric": Mixture(SHARES, "log_normalized"),
    "advantage": Mixture(SHARES, "advantage"),
    "routed": Mixture(ROUTED, "probability"),
    "blended": Mixture(BLENDED, "probability"),
    "blended geometric": Mixture(BLENDED, "log_normalized"),
    "blended advantage": Mixture(BLENDED, "advantage"),
}


STUDENT = cache(partial(tiny_qwen3, tie=True))


@cache
def teacher(index: int) -> PreTrainedModel:
    return tiny_qwen3(seed=1 + index).requires_grad_(False)


class World:
    """A student, its teachers, and what the teachers say of a rollout."""

    def __init__(self, rollout: Rollout, num_teachers: int, *, micro_batch_tokens: int = 12, logit_chunk: int = 3):
        memory = {"micro_batch_tokens": micro_batch_tokens, "logit_chunk": logit_chunk}
        self.rollout, self.student, self.models = rollout, STUDENT(), [teacher(index) for index in range(num_teachers)]
        scorers = [Scorer(root(model), ALONE, temperature=TEACHER_TEMPERATURE, **memory) for model in self.models]
        self.teachers = LocalTeachers([lambda one=one: one for one in scorers], keep_hidden=True)
        self.scores = self.teachers.score(rollout, range(num_teachers))
        self.theirs = torch.stack([self.distributions(model, TEACHER_TEMPERATURE) for model in self.models])
        self.both_models = FullDistributions(
            Policy(root(self.student), ALONE, temperature=STUDENT_TEMPERATURE, **memory), self.teachers
        )

    def distributions(self, model, temperature: float) -> Tensor:
        """Log-probs [response token, vocabulary], response by response."""
        found = []
        for row in range(len(self.rollout)):
            prompt = self.rollout.prompt[row][self.rollout.prompt_mask[row]]
            response = self.rollout.tokens[row][self.rollout.mask[row]]
            logits = model(torch.cat([prompt, response])[None]).logits[0] / temperature
            found.append(logits[len(prompt) - 1 : len(prompt) + len(response) - 1].log_softmax(-1))
        return torch.cat(found)

    def plain(self, mixture: Mixture, measure: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The student's and the reference's log-probs, and `measure` of them: one number a response token."""
        student = self.distributions(self.student, STUDENT_TEMPERATURE)
        teachers = self.theirs
        row = torch.arange(len(self.rollout)).repeat_interleave(self.rollout.mask.sum(1))
        weights = mixture.weights if mixture.weights.ndim == 1 else mixture.weights[:, row]
        reference = Mixture(weights, mixture.space).reference(teachers)
        if mixture.space != "advantage":
            return student, reference, measure(student, reference)
        parts = [w * measure(student, teacher) for w, teacher in zip(weights, teachers, strict=True)]
        return student, reference, torch.stack(parts).sum(0)

    def gradients(self) -> list[Tensor]:
        """What the student's parameters hold, which is taken from them."""
        found = [parameter.grad for parameter in self.student.parameters()]
        self.student.zero_grad(set_to_none=True)
        return found


def chosen(name: str, rollout: Rollout) -> Chosen:
    inside = (rollout.tokens % 3 == 0) & rollout.mask
    return DIVERGENCES[name]().at(inside, torch.zeros(rollout.mask.shape))


def weights_of(rollout: Rollout, seed: int) -> Tensor:
    """Some of them 0, all those of the second response, and numbers where no token is."""
    weight = torch.rand(rollout.mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight[weight < 0.3] = 0
    weight[1] = 0
    return torch.where(rollout.mask, weight, 0)


def compare(
    world: World, name: str, where: Support, mixture: Mixture, *, entropy: bool = True, clamp: float | None = None
) -> None:
    rollout, picked = world.rollout, chosen(name, world.rollout)
    weight, entropy_weight = weights_of(rollout, 3), weights_of(rollout, 4) if entropy else None
    tokens = rollout.tokens[rollout.mask]

    def measure(student: Tensor, reference: Tensor) -> Tensor:
        total = torch.zeros(len(student), dtype=torch.float64)
        for one, at in picked.parts:
            total = torch.where(at[rollout.mask], where.exact(one, student, reference, tokens), total)
        return total

    student, reference, expected = world.plain(mixture, measure)
    student_entropy = -(student.exp() * student).sum(-1)
    loss = (weight[rollout.mask] * expected).sum()
    if entropy_weight is not None:
        loss = loss - (entropy_weight[rollout.mask] * student_entropy).sum()
    loss.backward()
    wanted = world.gradients()
    found = world.both_models.measure(
        rollout, world.scores, mixture, picked,
        support=where, weight=weight, entropy_weight=entropy_weight, clamp=clamp,
    )  # fmt: skip
    for got, want in zip(world.gradients(), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * float(want.abs().max()))
    used = (weight != 0) if entropy_weight is None else (weight != 0) | (entropy_weight != 0)
    at = used[rollout.mask]
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
    close(found["divergence"][used], expected.detach()[at])
    if mixture.space != "advantage":
        picks = [logp.detach().gather(1, tokens[:, None])[at, 0] for logp in (student, reference)]
        close(found["student_logp"][used], picks[0])
        close(found["reference_logp"][used], picks[1])
    if entropy_weight is not None:
        close(found["student_entropy"][used], student_entropy.detach()[at])
    for numbers in found.values():
        assert numbers[rollout.mask & ~used].isnan().all() and (numbers[~rollout.mask] == 0).all()


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("where", SUPPORTS)
def test_matches_enumeration(mixture: str, where: str, rollout: Rollout):
    world = World(rollout, 1 if mixture == "single" else 3)
    for name in ("hellinger", "split"):
        compare(world, name, SUPPORTS[where], MIXTURES[mixture])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_with_entropy_weight(name: str, rollout: Rollout):
    world = World(rollout, 3)
    for where in SUPPORTS.values():
        compare(world, name, where, MIXTURES["blended"])
    compare(world, name, support.full(), MIXTURES["blended"], entropy=False)


@pytest.mark.parametrize("micro_batch_tokens", [1, 9, 30, 10_000])
@pytest.mark.parametrize("logit_chunk", [1, 4, 1000])
def test_any_micro_batch_and_any_chunk(micro_batch_tokens: int, logit_chunk: int, rollout: Rollout):
    world = World(rollout, 3, micro_batch_tokens=micro_batch_tokens, logit_chunk=logit_chunk)
    for where in ("full", "topk bucket union"):
        compare(world, "split", SUPPORTS[where], MIXTURES["blended geometric"])


def test_clamp_equals_clamped_policy_gradient(rollout: Rollout):
    world, d, clamp = World(rollout, 1), divergence.forward_kl(), 0.4
    weight = weights_of(rollout, 3)

    def measure(student: Tensor, reference: Tensor) -> Tensor:
        p, u = student.detach().exp(), (student - reference).detach()
        return -(p * d.advantage(u.clamp(-clamp, clamp)) * student).sum(-1)

    student, reference, surrogate = world.plain(MIXTURES["single"], measure)
    (weight[rollout.mask] * surrogate).sum().backward()
    wanted = world.gradients()
    found = world.both_models.measure(
        rollout, world.scores, MIXTURES["single"], chosen("forward_kl", rollout),
        support=support.full(), weight=weight, entropy_weight=None, clamp=clamp,
    )  # fmt: skip
    for got, want in zip(world.gradients(), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * float(want.abs().max()))
    beyond = (student.exp() * ((student - reference).abs() > clamp)).sum(-1).detach()
    used = weight != 0
    torch.testing.assert_close(found["clamped"][used], beyond[used[rollout.mask]])
    assert 0 < float(beyond.mean()) < 1


@pytest.mark.parametrize("mixture", [name for name in MIXTURES if "advantage" not in name])
def test_statistics_match_enumeration(mixture: str, rollout: Rollout):
    world = World(rollout, 1 if mixture == "single" else 3)
    student, reference, kl = world.plain(
        MIXTURES[mixture], lambda student, reference: (student.exp() * (student - reference)).sum(-1)
    )
    found = world.both_models.statistics(rollout, world.scores, MIXTURES[mixture])
    assert all(parameter.grad is None for parameter in world.student.parameters())
    tokens, normalized = rollout.tokens[rollout.mask][:, None], reference.log_softmax(-1)
    expected = {
        "student_logp": student.gather(1, tokens)[:, 0],
        "reference_logp": reference.gather(1, tokens)[:, 0],
        "student_entropy": -(student.exp() * student).sum(-1),
        "reference_entropy": -(normalized.exp() * normalized).sum(-1),
        "reverse_kl": kl,
        "divergence": kl,
    }
    for name, numbers in expected.items():
        torch.testing.assert_close(found[name][rollout.mask], numbers.detach(), rtol=1e-5, atol=1e-6, check_dtype=False)
        assert (found[name][~rollout.mask] == 0).all()


def test_unneeded_teacher_may_be_missing(rollout: Rollout):
    world = World(rollout, 3)
    weight = weights_of(rollout, 3)
    lonely = Mixture(torch.tensor([0.0, 1.0, 0.0]), "probability")
    options = {"support": support.full(), "weight": weight, "entropy_weight": None, "clamp": None}
    picked = chosen("hellinger", rollout)
    world.both_models.measure(rollout, world.scores, lonely, picked, **options)
    wanted = world.gradients()
    scores = world.teachers.score(rollout, [1])
    assert scores.hidden.keys() == {1}
    world.both_models.measure(rollout, scores, lonely, picked, **options)
    assert all(torch.equal(got, want) for got, want in zip(world.gradients(), wanted, strict=True))


EMPTY = {
    "no weight": lambda rollout: (rollout, torch.zeros(rollout.mask.shape)),
    "a response without a token": lambda _: (
        with_row_removed(rollout_of([[2, 3], [4, 5, 6]], [[7, 8], [9]])),
        torch.ones(2, 2),
    ),
    "no token at all": lambda _: (
        with_row_removed(with_row_removed(rollout_of([[2, 3], [4, 5, 6]], [[7, 8], [9]]), 0), 1),
        torch.ones(2, 2),
    ),
}


def with_row_removed(rollout: Rollout, row: int = 1) -> Rollout:
    mask = rollout.mask.clone()
    mask[row] = False
    return Rollout(**{**vars(rollout), "mask": mask, "learned": mask})


@pytest.mark.parametrize("case", EMPTY)
@pytest.mark.parametrize("where", ["full", "topk sampled student"])
def test_empty_selection_has_no_gradient(case: str, where: str, rollout: Rollout):
    given, weight = EMPTY[case](rollout)
    weight = torch.where(given.mask, weight, 0)
    world = World(given, 1)
    found = world.both_models.measure(
        given, world.scores, MIXTURES["single"], chosen("split", given),
        support=SUPPORTS[where], weight=weight, entropy_weight=weight.clone(), clamp=None,
    )  # fmt: skip
    gradients = world.gradients()
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)
    nothing = not weight.any()
    assert all(gradient is None or bool(gradient.any()) != nothing for gradient in gradients)
    assert found["divergence"][weight != 0].isfinite().all()
    assert set(found) == set(NUMBERS)


def test_empty_response_does_not_affect_others():
    both = with_row_removed(rollout_of([[2, 3], [4, 5, 6]], [[7, 8], [9]]))
    gradients = []
    for rollout in (both, rollout_of([[2, 3]], [[7, 8]])):
        world = World(rollout, 1)
        world.both_models.measure(
            rollout, world.scores, MIXTURES["single"], chosen("forward_kl", rollout),
            support=support.full(), weight=rollout.mask.double(), entropy_weight=None, clamp=None,
        )  # fmt: skip
        gradients.append(world.gradients())
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("max_tokens", [1, 12, 10_000])
def test_spread_undoes_the_order_of_token_index(max_tokens: int, rollout: Rollout):
    generator = torch.Generator().manual_seed(5)
    numbers = torch.where(rollout.mask, torch.rand(rollout.mask.shape, generator=generator), 0)
    order = token_index(rollout.mask)
    assert order[rollout.mask].tolist() == list(range(int(rollout.mask.sum())))
    flat = torch.full((int(rollout.mask.sum()),), torch.nan)
    for micro in micro_batches(rollout, max_tokens=max_tokens):
        flat[order[micro.rows][micro.response]] = numbers[micro.rows][micro.response]
    assert torch.equal(spread(flat, rollout.mask), numbers)


def test_hidden_states_order(rollout: Rollout):
    orders = [World(rollout, 1, micro_batch_tokens=size).scores.hidden[0] for size in (1, 12, 10_000)]
    for other in orders[1:]:
        torch.testing.assert_close(other, orders[0], rtol=1e-10, atol=1e-12)
    alone: list[Tensor] = []
    for row in range(len(rollout)):
        scores: TeacherScores = World(rollout.rows(slice(row, row + 1)), 1).scores
        alone.append(scores.hidden[0])
    torch.testing.assert_close(torch.cat(alone), orders[0], rtol=1e-10, atol=1e-12)
