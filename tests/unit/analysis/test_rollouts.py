import json

import numpy as np
import pytest

from analysis.rollouts import RESPONSES, TOKENS, read_rollouts
from opd.records.files import RecordError
from opd.records.run_dir import RunDir
from tests.unit.analysis.fake_runs import HOSTILE
from tests.unit.analysis.published_runs import rollouts


def written(tmp_path, data) -> RunDir:
    run = RunDir(tmp_path)
    run.write_rollouts(20, data, "")
    return run


def test_record_is_read_as_it_was_written(tmp_path):
    data = rollouts(np.random.default_rng(0))
    found = read_rollouts(written(tmp_path, data), 20)
    assert found.step == 20 and sum(found.counts) == 1000 and (found.low, found.high) == (-8, 8)
    (response,) = found.responses
    assert response.tokens == ["12", " +", " 34", " =", "↵", " 46", "∅"]
    assert response.learned[:4] == [True, True, True, False]
    assert response.advantage[1] == -1.0 and response.advantage[2] is None


def test_hostile_tokens_are_one_line_of_printable_text(tmp_path):
    found = read_rollouts(written(tmp_path, rollouts(np.random.default_rng(0), HOSTILE)), 20)
    for token in found.responses[0].tokens:
        assert len(token) <= 40 and token.isprintable()


def test_long_records_are_cut(tmp_path):
    data = rollouts(np.random.default_rng(0), ["x"] * (TOKENS + 7))
    data["responses"] *= RESPONSES + 3
    found = read_rollouts(written(tmp_path, data), 20)
    assert len(found.responses) == RESPONSES
    assert len(found.responses[0].tokens) == TOKENS and found.responses[0].left_out == 7


@pytest.mark.parametrize(
    "change",
    [
        {"log_ratio": None},
        {"log_ratio": {"low": 1, "high": 0, "counts": [1], "below": 0, "above": 0}},
        {"log_ratio": {"low": 0, "high": 1, "counts": [-1], "below": 0, "above": 0}},
        {"log_ratio": {"low": 0, "high": "x", "counts": [1], "below": 0, "above": 0}},
        {"log_ratio": {"low": 0, "high": 1, "counts": [1.5], "below": 0, "above": 0}},
        {"responses": {"a": 1}},
        {"responses": [{"problem": "p", "tokens": ["a"], "advantage": [], "log_ratio": [1], "learned": [True]}]},
        {"responses": [3]},
    ],
)
def test_what_is_not_a_record_of_rollouts_is_refused(tmp_path, change):
    run = written(tmp_path, {**rollouts(np.random.default_rng(0)), **change})
    with pytest.raises(RecordError, match="is not a record of rollouts"):
        read_rollouts(run, 20)


def test_record_that_is_no_json(tmp_path):
    run = written(tmp_path, {})
    run.rollouts_file(20).write_text(json.dumps([1]))
    with pytest.raises(RecordError):
        read_rollouts(run, 20)
