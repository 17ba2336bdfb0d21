"""Differences between configs by dotted key (`opd.config.flat`)."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def difference(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What turns `base` into `own`, both by dotted key: `set`, key → value, and `unset`, keys; empty ones are omitted.

    1, 1.0 and true are three values.
    """
    changed = {key: value for key, value in own.items() if key not in base or not same(base[key], value)}
    removed = sorted(key for key in base if key not in own)
    return {**({"set": changed} if changed else {}), **({"unset": removed} if removed else {})}


def applied(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with a `difference` applied; raises `ValueError` where it is not one, or unsets an unknown key."""
    removed = change.get("unset", ())
    if not change.keys() <= {"set", "unset"} or not isinstance(removed, list | tuple):
        raise ValueError("a difference has only set, a mapping, and unset, a list")
    for key in removed:
        if key not in base:
            raise ValueError(f"{key} is unset but does not exist")
    return {key: value for key, value in base.items() if key not in removed} | change.get("set", {})


def shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The base with the smallest `difference`s to all `configs`: the most frequent value of each key."""
    base = {}
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config[key] for config in configs if key in config]
        ((text, count),) = Counter(map(_text, values)).most_common(1)
        if len(configs) - count < len(values):
            base[key] = next(value for value in values if _text(value) == text)
    return base


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one type."""
    return _text(one) == _text(other)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
