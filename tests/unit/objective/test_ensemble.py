import inspect
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from opd.check.ensemble_rules import refuse_teachers
from opd.errors import UserError
from opd.objective import ensemble


def teachers(num, batch=2, time=3):
    return torch.arange(num, dtype=torch.float32)[:, None, None].expand(num, batch, time).clone()


def test_single_is_its_teacher():
    assert torch.equal(ensemble.single(teachers(1), 0.3), torch.zeros(2, 3))
    assert ensemble.single.needed(1, 0.5) == (0,)


@pytest.mark.parametrize(
    ("num", "progress", "boundaries", "index"),
    [
        (4, 0.0, None, 0), (4, 0.2499, None, 0), (4, 0.25, None, 1), (4, 0.74, None, 2), (4, 0.75, None, 3),
        (4, 1.0, None, 3), (3, 1.0, None, 2), (2, 0.5, None, 1), (2, 0.49, None, 0),
        (3, 0.0, [0.1, 0.6], 0), (3, 0.1, [0.1, 0.6], 1), (3, 0.59, [0.1, 0.6], 1), (3, 0.6, [0.1, 0.6], 2),
        (3, 1.0, [0.1, 0.6], 2),
    ],
)  # fmt: skip
def test_hard_switch_order(num, progress, boundaries, index):
    logp = teachers(num)
    logp[[other for other in range(num) if other != index]] = math.nan  # not needed, not run
    assert (ensemble.hard_switch(logp, progress, boundaries=boundaries) == index).all()
    assert ensemble.hard_switch.needed(num, progress, boundaries=boundaries) == (index,)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.integers(1, 400))
def test_hard_switch_gives_equal_shares(num, steps):
    counts = [0] * num
    for step in range(num * steps):
        counts[ensemble.hard_switch.needed(num, step / (num * steps), boundaries=None)[0]] += 1
    assert max(counts) - min(counts) <= 1


def accepts(build, num, **knobs):
    refuse_teachers(build.__name__, num, knobs, at_least=build.at_least, at_most=build.at_most)


def test_number_of_teachers_is_checked():
    accepts(ensemble.single, 1)
    accepts(ensemble.hard_switch, 3, boundaries=None)
    accepts(ensemble.hard_switch, 3, boundaries=[0.2, 0.4])
    with pytest.raises(UserError, match="single takes exactly 1 teacher, not 3"):
        accepts(ensemble.single, 3)
    with pytest.raises(UserError, match="hard_switch takes at least 2 teachers, not 1"):
        accepts(ensemble.hard_switch, 1, boundaries=None)


@pytest.mark.parametrize("boundaries", [[0.5], [0.5, 0.4], [0.0, 0.5], [0.5, 1.0], [0.2, 0.2], [0.1, 0.2, 0.3]])
def test_refuses_invalid_boundaries(boundaries):
    with pytest.raises(UserError, match=r"ensemble\.boundaries.*takes 2 rising numbers"):
        accepts(ensemble.hard_switch, 3, boundaries=boundaries)


# ---- mixtures, against the plain formula on whole distributions


def vocabulary(num=3, batch=2, time=4, width=5, seed=0):
    logits = torch.randn(num, batch, time, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * logits).log_softmax(-1)


WEIGHTS = [0.5, 0.3, 0.2]


def rows_for(logp, teacher=None, group=(0, 0)):
    sampled = logp[..., 0]
    return ensemble.Rows(
        teacher=None if teacher is None else torch.tensor(teacher),
        group=torch.tensor(group),
        mask=torch.ones(sampled.shape[1:], dtype=torch.bool),
        logp=sampled,
        entropy=-(logp.exp() * logp).sum(-1),
    )


def test_arithmetic_is_the_mean_of_probabilities():
    logp = vocabulary()
    mixed = torch.einsum("k,kbtv->btv", torch.tensor(WEIGHTS, dtype=torch.float64), logp.exp())
    found = ensemble.arithmetic(logp, 0.5, weights=WEIGHTS)
    torch.testing.assert_close(found.exp(), mixed)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 4, dtype=torch.float64))
    # Exact on the sampled token alone: no other token is needed.
    torch.testing.assert_close(ensemble.arithmetic(logp[..., 3], 0.5, weights=WEIGHTS), found[..., 3])
    torch.testing.assert_close(ensemble.arithmetic(logp, 0.5, weights=None).exp(), logp.exp().mean(0))


def test_geometric_mean():
    logp = vocabulary()
    product = torch.einsum("k,kbtv->btv", torch.tensor(WEIGHTS, dtype=torch.float64), logp)
    torch.testing.assert_close(ensemble.geometric(logp, 0.5, weights=WEIGHTS, normalize=False), product)
    normalised = ensemble.geometric.mixture(3, 0.5, weights=WEIGHTS, normalize=True).reference(logp)
    torch.testing.assert_close(normalised, product.log_softmax(-1))
    assert (product.logsumexp(-1) < 0).all()


def test_advantage_mean_is_linear_in_advantages():
    logp = vocabulary()[..., 0]
    student = vocabulary(1, seed=9)[0, ..., 0]
    shares = torch.tensor(WEIGHTS, dtype=torch.float64)
    hellinger = lambda u: torch.expm1(-u / 2)  # noqa: E731
    found = ensemble.advantage_mean.mixture(3, 0.5, weights=WEIGHTS).advantage(hellinger, student, logp)
    torch.testing.assert_close(found, torch.einsum("k,kbt->bt", shares, hellinger(student - logp)))
    # Of k1, the linear mean is the unnormalised geometric mean (field-notes, section 2).
    k1 = lambda u: -u  # noqa: E731
    product = ensemble.geometric(logp, 0.5, weights=WEIGHTS, normalize=False)
    for mean in (ensemble.advantage_mean.mixture(3, 0.5, weights=WEIGHTS).advantage(k1, student, logp),):
        torch.testing.assert_close(mean, product - student)
    torch.testing.assert_close(ensemble.advantage_mean(logp, 0.5, weights=WEIGHTS), product)


@pytest.mark.parametrize(
    ("progress", "weights"),
    [(0.0, [1, 0, 0]), (0.25, [0.5, 0.5, 0]), (0.5, [0, 1, 0]), (0.875, [0, 0.25, 0.75]), (1.0, [0, 0, 1])],
)
def test_soft_switch_slides_between_neighbours(progress, weights):
    logp = vocabulary()
    logp[[k for k in range(3) if weights[k] == 0]] = math.nan
    found = ensemble.soft_switch(logp, progress)
    mixed = sum(w * logp[k].exp() for k, w in enumerate(weights) if w > 0)
    torch.testing.assert_close(found.exp(), mixed)
    assert ensemble.soft_switch.needed(3, progress) == tuple(k for k in range(3) if weights[k] > 0)


def test_routed_ensembles():
    logp = teachers(3, batch=4)
    full = vocabulary(3, batch=4)
    rows = rows_for(full, teacher=[2, 0, 1, 2], group=[0, 1, 2, 3])
    for routed, knobs in [
        (ensemble.random, {}),
        (ensemble.control_token, {"token": "<{}>", "teacher_sees_token": False, "evaluate_with": "last"}),
        (ensemble.by_domain, {"domain": {"x": 2}}),
    ]:
        found = routed(logp, 0.5, rows, **knobs)
        assert found.tolist() == [[2.0] * 3, [0.0] * 3, [1.0] * 3, [2.0] * 3]
        assert routed.needed(3, 0.5, **knobs) == (0, 1, 2)
        with pytest.raises(ValueError, match="needs rows"):
            routed(logp, 0.5, **knobs)


def test_assignments():
    assert ensemble.single.assign(1, ["x"], (0, 1)) is None
    drawn = ensemble.random.assign(4, ["x"] * 400, (7, 3))
    assert drawn == ensemble.random.assign(4, ["x"] * 400, (7, 3))
    assert drawn != ensemble.random.assign(4, ["x"] * 400, (7, 4))
    assert all(70 < drawn.count(index) < 130 for index in range(4))
    knobs = {"token": "<{}>", "teacher_sees_token": False, "evaluate_with": "last"}
    assert ensemble.control_token.assign(2, ["x"] * 5, (0, 0), **knobs) == (0, 1, 0, 1, 0)
    assert ensemble.by_domain.assign(2, ["add", "mul", "add"], (0, 0), domain={"add": 1, "mul": 0}) == (1, 0, 1)
    with pytest.raises(UserError, match="no teacher for the domain 'sub'"):
        ensemble.by_domain.assign(2, ["add", "sub"], (0, 0), domain={"add": 1, "mul": 0})


def test_best_of_is_one_teacher_a_prompt():
    full = vocabulary(3, batch=4, seed=5)
    rows = rows_for(full, group=[0, 0, 1, 1])
    for by, score in (("likelihood", rows.logp), ("entropy", -rows.entropy)):
        found = ensemble.best_of(rows.logp, 0.5, rows, by=by)
        for group in (0, 1):
            where = rows.group == group
            best = score[:, where].sum((1, 2)).argmax()
            torch.testing.assert_close(found[where], rows.logp[best, where])


def test_entropy_of_the_reference():
    entropy = torch.tensor([[[1.0]], [[2.0]], [[math.nan]]])
    assert ensemble.soft_switch.mixture(3, 0.25).entropy(entropy).tolist() == [[1.5]]
    assert ensemble.hard_switch.mixture(3, 0.4, boundaries=None).entropy(entropy).tolist() == [[2.0]]


@pytest.mark.parametrize("num", [2, 3])
def test_repeated_teacher_equals_single(num):
    logp = vocabulary(1).expand(num, -1, -1, -1)
    for found in (
        ensemble.arithmetic(logp, 0.3, weights=None),
        ensemble.geometric.mixture(num, 0.3, weights=None, normalize=True).reference(logp),
        ensemble.geometric(logp, 0.3, weights=None, normalize=False),
        ensemble.soft_switch(logp, 0.3),
    ):
        torch.testing.assert_close(found, logp[0])


@pytest.mark.parametrize(
    ("build", "knobs", "message"),
    [
        (ensemble.arithmetic, {"weights": [0.5]}, "it takes 2 numbers that are not negative"),
        (ensemble.arithmetic, {"weights": [-1, 2]}, "it takes 2 numbers that are not negative"),
        (ensemble.geometric, {"weights": [0, 0], "normalize": True}, "it takes 2 numbers that are not negative"),
        (
            ensemble.control_token,
            {"token": "<t>", "teacher_sees_token": True, "evaluate_with": "none"},
            "a text with {} where",
        ),
        (ensemble.by_domain, {"domain": {"add": 2}}, "indices of teachers, 0 to 1"),
    ],
)
def test_refuses_knobs_of_wrong_size(build, knobs, message):
    with pytest.raises(UserError, match=message):
        accepts(build, 2, **knobs)


def test_ensemble_signature():
    parameters = inspect.signature(ensemble.geometric).parameters
    assert [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY] == ["weights", "normalize"]
    assert ensemble.geometric.__name__ == "geometric"
    assert ensemble.geometric.__module__ == "opd.objective.ensemble"


def test_refuses_normalized_mean_of_sampled_tokens():
    with pytest.raises(UserError, match=r"ensemble\.normalize=true.*sampled tokens do not show"):
        ensemble.geometric(teachers(3), 0.5, weights=None, normalize=True)
