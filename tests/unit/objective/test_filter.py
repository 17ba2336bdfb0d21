import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from opd.errors import UserError
from opd.objective import filter as token_filter

RANGES = [(0, 30), (30, 70), (70, 100)]


def signals(k1, student_entropy=None, teacher_entropy=None, exact_kl=None):
    zeros = torch.zeros_like(k1)
    return token_filter.TokenSignals(
        k1=k1,
        student_entropy=zeros if student_entropy is None else student_entropy,
        teacher_entropy=zeros if teacher_entropy is None else teacher_entropy,
        exact_kl=exact_kl,
    )


def keep(k1, mask=None, group=None, p=(0, 100), score="signed_k1", scope="batch", denominator="all", **more):
    mask = torch.ones(k1.shape, dtype=torch.bool) if mask is None else mask
    group = torch.zeros(len(k1), dtype=torch.long) if group is None else group
    return token_filter.percentile(
        signals(k1, **more), mask, group, score=score, p_min=p[0], p_max=p[1], scope=scope, denominator=denominator
    )


def test_hand_computed_ranges():
    k1 = torch.tensor([[5.0, -9.0, 1.0, 0.0, 3.0], [-2.0, 8.0, -4.0, 7.0, -6.0]])
    # |k1| in order: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
    assert keep(k1, p=(0, 30), score="abs_k1").keep.tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert keep(k1, p=(70, 100), score="abs_k1").keep.tolist() == [[0, 1, 0, 0, 0], [0, 1, 0, 1, 0]]
    # signed, in order: -9, -6, -4, -2, 0, 1, 3, 5, 7, 8
    assert keep(k1, p=(0, 30)).keep.tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 1]]
    assert keep(k1, p=(80, 100), scope="sequence").keep.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]


def test_groups_are_ranked_apart():
    k1 = torch.tensor([[1.0, 2.0], [30.0, 40.0], [3.0, 4.0], [10.0, 20.0]])
    group = torch.tensor([7, 2, 7, 2])
    assert keep(k1, group=group, p=(50, 100), scope="group").keep.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize("score", ["student_entropy", "teacher_entropy", "exact_kl"])
def test_each_score_ranks_by_itself(score):
    values = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    assert keep(torch.zeros(1, 4), p=(50, 100), score=score, **{score: values}).keep.tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize("scope", ["sequence", "group", "batch"])
@settings(deadline=None, max_examples=40)
@given(data=st.data(), rows=st.integers(0, 4), time=st.integers(0, 9))
def test_ranges_partition_valid_tokens(scope, data, rows, time):
    cells = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=rows * time, max_size=rows * time)
    k1 = torch.tensor(data.draw(cells), dtype=torch.float32).view(rows, time)
    mask = torch.tensor(data.draw(cells), dtype=torch.float32).view(rows, time) > -0.5
    group = torch.arange(rows) // 2
    total = sum(keep(k1, mask, group, p=p, scope=scope, score="abs_k1").keep.int() for p in RANGES)
    assert torch.equal(torch.as_tensor(total, dtype=torch.int32), mask.int())


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(4)), st.floats(0, 50), st.floats(50, 100))
def test_invariant_to_row_order(order, low, high):
    k1 = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) > 0.3
    plain, shuffled = keep(k1, mask, p=(low, high)).keep, keep(k1[list(order)], mask[list(order)], p=(low, high)).keep
    assert torch.equal(plain[list(order)], shuffled)


def test_denominator_keeps_or_drops_filtered_tokens():
    k1, mask = torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[True, True, True, False]])
    stay, leave = (keep(k1, mask, p=(50, 100), denominator=d) for d in ("all", "kept"))
    assert stay.keep.tolist() == leave.keep.tolist() == leave.count.tolist() == [[0, 0, 1, 0]]
    assert stay.count.tolist() == mask.tolist()


def test_what_is_masked_may_hold_anything():
    k1 = torch.tensor([[1.0, math.nan, 2.0, math.inf]])
    assert keep(k1, torch.tensor([[True, False, True, False]]), p=(50, 100)).keep.tolist() == [[0, 0, 1, 0]]
    assert not keep(k1, torch.zeros(1, 4, dtype=torch.bool)).keep.any()


def test_refuses_missing_score():
    with pytest.raises(UserError, match="teacher_entropy is missing or not finite"):
        keep(torch.zeros(1, 2), score="teacher_entropy", teacher_entropy=torch.tensor([[0.0, math.nan]]))
    with pytest.raises(UserError, match="exact_kl needs the whole vocabulary"):
        keep(torch.zeros(1, 2), score="exact_kl")


def test_none_keeps_every_valid_token():
    mask = torch.tensor([[True, False, True]])
    filtered = token_filter.none(signals(torch.zeros(1, 3)), mask, torch.zeros(1, dtype=torch.long), p_min=0, p_max=100)
    assert torch.equal(filtered.keep, mask)
    assert torch.equal(filtered.count, mask)
    assert torch.equal(filtered.inside, mask)


def test_partition_marks_and_keeps():
    k1 = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    mask, group = torch.tensor([[True, True, True, False]]), torch.zeros(1, dtype=torch.long)
    knobs = {"score": "abs_k1", "p_min": 60, "p_max": 100, "scope": "batch"}
    filtered = token_filter.partition(signals(k1), mask, group, **knobs)
    assert torch.equal(filtered.keep, mask)
    assert torch.equal(filtered.count, mask)
    assert filtered.inside.tolist() == [[0, 1, 0, 0]]


def test_batch_scope_is_global_over_ranks():
    k1 = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(4)) > 0.3
    whole = keep(k1, mask, p=(30, 70)).keep
    everyone = k1[mask]
    for half in (slice(0, 2), slice(2, 6)):
        start = int(mask[: half.start].sum())
        found = token_filter.percentile(
            signals(k1[half]), mask[half], torch.zeros(half.stop - half.start, dtype=torch.long),
            lambda own, start=start: (everyone, start),
            score="signed_k1", p_min=30, p_max=70, scope="batch", denominator="all",
        )  # fmt: skip
        assert torch.equal(found.keep, whole[half])


def test_eligible():
    tokens = torch.tensor([[5, 9, 5, 7], [9, 1, 2, 3]])
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    assert token_filter.eligible(mask, tokens, token_ids=[9, 7], prefix=None).tolist() == [[1, 0, 1, 0], [0, 1, 1, 0]]
    assert token_filter.eligible(mask, tokens, token_ids=[], prefix=2).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert torch.equal(token_filter.eligible(mask, tokens, token_ids=[], prefix=None), mask)


def test_reasons_sum_to_one():
    response = torch.tensor([[True, True, True, True, True, False]])
    allowed = torch.tensor([[True, True, True, True, False, False]])
    kept = torch.tensor([[True, True, False, False, False, False]])
    matched = torch.tensor([[True, False, True, False, True, False]])
    found = token_filter.metrics(response, allowed, token_filter.Filtered(kept, allowed, kept), matched)
    assert found == pytest.approx({"kept": 0.2, "not_eligible": 0.2, "filtered": 0.4, "mismatched": 0.2})
    assert sum(found.values()) == pytest.approx(1)
