from typing import Any

import pytest
from hypothesis import given, strategies as st

from analysis.config_diff import applied, difference, same, shared
from opd.config.flat import flat, nested

VALUES = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, 1.0, "1", ""]) | st.just([1, 2])
KEYS = st.sampled_from(["a", "b", "a.b", "a%2Eb", "%", ".", ""])
CONFIGS = st.dictionaries(
    KEYS, st.recursive(VALUES, lambda inner: st.dictionaries(KEYS, inner, max_size=3)), max_size=4
)


@given(CONFIGS)
def test_a_config_comes_back_from_its_dotted_keys(config: dict[str, Any]):
    assert same(nested(flat(config)), config)


@given(st.lists(CONFIGS.map(flat), min_size=1, max_size=4))
def test_each_config_comes_back_from_what_all_share_and_what_it_has_of_its_own(configs: list[dict[str, Any]]):
    base = shared(configs)
    for config in configs:
        assert same(applied(base, difference(base, config)), config)


def test_what_is_set_and_unset():
    base = {"a": 1, "b": None, "c.d": [1]}
    assert difference(base, {"a": 1, "c.d": [1, 2], "e": None}) == {"set": {"c.d": [1, 2], "e": None}, "unset": ["b"]}
    assert difference(base, base) == {}


def test_a_value_of_another_kind_is_a_difference():
    for one, other in ((1, 1.0), (1, True), (0, False), ([1], [1.0]), (None, "null")):
        assert difference({"a": one}, {"a": other}) == {"set": {"a": other}}


def test_the_most_frequent_value_is_shared_and_what_few_have_is_not():
    assert shared([{"a": 1, "b": 1}, {"a": 2}, {"a": 2}]) == {"a": 2}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"unset": ["z"]}, "z is unset but does not exist"),
        ({"put": {}}, "only set, a mapping"),
        ({"unset": "a"}, "set"),
    ],
)
def test_what_is_no_difference_is_refused(change: dict[str, Any], wrong: str):
    with pytest.raises(ValueError, match=wrong):
        applied({"a": 1}, change)


@pytest.mark.parametrize("keys", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}])
def test_a_key_cannot_be_both_a_value_and_a_folder(keys: dict[str, int]):
    with pytest.raises(ValueError, match=r"^a"):
        nested(keys)
