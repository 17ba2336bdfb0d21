import pytest
import torch

from opd.data.batch import Rollout
from opd.errors import UserError
from opd.model.policy import Scorer
from opd.teacher.local import LoadedTeachers, LocalTeachers
from tests.unit.small import ALONE, root, tiny_qwen3


def scorer(seed: int) -> Scorer:
    return Scorer(root(tiny_qwen3(seed=seed)), ALONE, micro_batch_tokens=64, logit_chunk=8, temperature=1.0)


def test_only_needed_teachers_are_loaded(rollout: Rollout):
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


def test_names_teacher_without_finite_scores(rollout: Rollout):
    broken = scorer(0)
    broken.model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(UserError, match=r"teacher\.models\.0: its log-probabilities are not finite"):
        LocalTeachers([lambda: broken]).score(rollout, [0])


def test_unneeded_teachers_are_released_once():
    left: list[str] = []
    held = LoadedTeachers([lambda name=name: name for name in "abc"], left.append)
    assert list(held.load_needed([0, 1])) == [(0, "a"), (1, "b")] and left == []
    assert list(held.load_needed([1, 2])) == [(1, "b"), (2, "c")] and left == ["a"]
    held.close()
    assert sorted(left) == ["a", "b", "c"]
