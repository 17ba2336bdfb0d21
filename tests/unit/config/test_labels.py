"""What runs are called, against what one would type to get them."""

import itertools
from typing import Any

import pytest

from opd.config.flat import flat
from opd.config.labels import common, differences, labels, text
from tests.goldens import goldens

BASE = flat(
    {
        "name": "default",
        "seed": 0,
        "gamma": 0.0,
        "epochs": 1,
        "rollout": {"temperature": 1.0},
        "teacher": {"temperature": 1.0, "models": ["org/large"]},
        "divergence": {"_target_": "opd.objective.divergence.reverse_kl"},
        "rollout_correction": {"_target_": "opd.objective.rollout_correction.mis", "low": 0.5, "high": 2.0},
        "student": {"model": "org/student", "lora": None},
        "scale": {"name": "tiny"},
        "tracker": {"kind": "none"},
    }
)
HELLINGER = {"divergence._target_": "opd.objective.divergence.hellinger"}
JEFFREYS = {"divergence._target_": "opd.objective.divergence.jeffreys"}


def made(*changes: dict[str, Any], base: dict[str, Any] = BASE) -> dict[str, dict[str, Any]]:
    return {f"default-{at}": {**base, **change} for at, change in enumerate(changes)}


def shown(*changes: dict[str, Any], base: str | None = None) -> list[str]:
    return list(labels(made(*changes), base).values())


def test_a_name_of_one_config_is_its_label():
    assert labels({"default-1": BASE, "other-1": {**BASE, "name": "other", "gamma": 1.0}}) == {
        "default-1": "default", "other-1": "other",
    }  # fmt: skip


def test_what_differs_from_the_base_follows_the_name():
    assert shown({}, {"gamma": 0.5}, HELLINGER, base="default-0") == [
        "default", "default gamma=0.5", "default divergence=hellinger",
    ]  # fmt: skip
    assert shown({"gamma": 0.5}, {"gamma": 0.5, **HELLINGER}, base="default-0") == [
        "default", "default divergence=hellinger",
    ]  # fmt: skip


def test_without_the_base_what_most_share_is_left_out_and_nothing_else():
    assert shown({"gamma": 0.5}, {"gamma": 0.9}) == ["default gamma=0.5", "default gamma=0.9"]
    assert shown(HELLINGER, JEFFREYS, {"gamma": 0.5}) == [
        "default divergence=hellinger", "default divergence=jeffreys", "default divergence=reverse_kl gamma=0.5",
    ]  # fmt: skip
    assert shown({}, {}, {"epochs": 2})[2] == "default epochs=2"


def test_values_are_short_and_equal_ones_under_one_name_are_told_once():
    changed = {"rollout.temperature": 0.5, "teacher.temperature": 0.5}
    assert differences({**BASE, **changed}, BASE) == {"rollout.temperature": "0.5"}
    assert differences({**BASE, "teacher.models": ["a/x", "b/y"]}, BASE) == {"teacher.models": "[x,y]"}
    assert differences({**BASE, "student.lora": True, "gamma": None}, BASE) == {"gamma": "null", "student.lora": "true"}


def test_labels_that_would_be_alike_say_more():
    both, one = {"rollout.temperature": 0.5, "teacher.temperature": 0.5}, {"rollout.temperature": 0.5}
    assert shown({}, both, one, base="default-0") == [
        "default",
        "default-1",
        "default-2",
    ]  # nothing short tells them apart
    many = {f"key{at}": 1 for at in range(6)}
    assert shown({}, many, base="default-0")[1] == "default key0=1 key1=1 key2=1 +3"
    assert shown({}, many, {**many, "key5": 2}, base="default-0")[1:] == [
        f"default {' '.join(f'key{at}=1' for at in range(6))}",
        f"default {' '.join(f'key{at}=1' for at in range(5))} key5=2",
    ]


def test_knobs_that_come_with_a_method_are_told_where_they_vary():
    alpha = {"divergence._target_": "x.alpha_divergence", "divergence.floor": 0.1}
    assert shown({}, {**alpha, "divergence.alpha": 0.5}, base="default-0")[1] == "default divergence=alpha_divergence"
    assert shown({}, *({**alpha, "divergence.alpha": each} for each in (0.5, 0.7)), base="default-0")[1:] == [
        f"default divergence=alpha_divergence divergence.alpha={each}" for each in (0.5, 0.7)
    ]
    lora = {"student.lora.rank": 8, "student.lora.alpha": 16}
    assert shown({}, lora, base="default-0")[1] == "default student.lora.alpha=16"
    none = {"rollout_correction._target_": "x.none", "rollout_correction.low": None, "rollout_correction.high": None}
    assert differences({**BASE, **none}, BASE) == {"rollout_correction": "none"}


def test_another_scale_is_named_and_not_all_that_it_brings():
    small = {"scale.name": "small", "epochs": 7, "student.model": "org/other"}
    assert shown({}, {"gamma": 0.5}, small, {**small, "gamma": 0.5}, {**small, "epochs": 9}, base="default-0") == [
        "default", "default gamma=0.5", "default scale=small", "default scale=small gamma=0.5",
        "default scale=small epochs=9",
    ]  # fmt: skip


def test_keys_without_effect_and_hostile_values():
    assert differences({**BASE, "seed": 3, "tracker.kind": "wandb", "name": "x"}, BASE) == {}
    label = labels(made({}, {"student.model": "a\x1b[31m\nb" + "x" * 500}), "default-0")["default-1"]
    assert len(label) < 80 and label.isprintable()


@pytest.mark.parametrize("base", ["mis", None])
def test_every_published_arm_under_one_name_has_a_label_of_its_own(base: str | None):
    configs = {name: {**config, "name": "run"} for name, config in goldens("tiny").items()}
    distinct: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        if config not in distinct.values():
            distinct[name] = config
    found = labels(distinct, base)
    assert len(set(found.values())) == len(distinct)
    assert sum(label == name for name, label in found.items()) == 0
    assert max(map(len, found.values())) < 100


def test_common_is_what_more_than_half_have():
    configs = [{"a": a, "b": b} for a, b in itertools.product((1, 2), (1, 1, 2))]
    assert common(configs) == {"b": 1}
    assert text({"a": "1", "+2": ""}) == "a=1 +2"
