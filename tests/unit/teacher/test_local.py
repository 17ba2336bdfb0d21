import pytest
import torch

from opd.data.batch import Rollout
from opd.errors import UserError
from opd.model.policy import Scorer
from opd.teacher.local import Held, LocalTeachers
from tests.unit.small import ALONE, root, tiny_qwen3


def scorer(seed: int) -> Scorer:
    return Scorer(root(tiny_qwen3(seed=seed)), ALONE, micro_batch_tokens=64, logit_chunk=8, temperature=1.0)


def test_only_the_needed_teachers_are_loaded_and_the_others_rows_are_nan(rollout: Rollout):
    loaded: list[int] = []
    teachers = LocalTeachers([lambda i=i: (loaded.append(i), scorer(i))[1] for i in range(3)])
    scores = teachers.score(rollout, [2])
    assert loaded == [2]
    assert torch.isnan(scores.logp[:2]).all() and torch.isnan(scores.entropy[:2]).all()
    torch.testing.assert_close(scores.logp[2], scorer(2).scores(rollout).logp)
    teachers.score(rollout, [2])
    assert loaded == [2]
    teachers.score(rollout, [0, 1])
    teachers.score(rollout, [2])
    assert loaded == [2, 0, 1, 2]


def test_a_teacher_that_gives_no_numbers_is_named(rollout: Rollout):
    broken = scorer(0)
    broken.model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(UserError, match=r"teacher\.models\.0: its log-probabilities are not finite"):
        LocalTeachers([lambda: broken]).score(rollout, [0])


def test_what_leaves_is_released_once_and_what_stays_is_not():
    left: list[str] = []
    held = Held([lambda name=name: name for name in "abc"], left.append)
    assert list(held.need([0, 1])) == [(0, "a"), (1, "b")] and left == []
    assert list(held.need([1, 2])) == [(1, "b"), (2, "c")] and left == ["a"]
    held.close()
    assert sorted(left) == ["a", "b", "c"]
