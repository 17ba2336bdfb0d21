"""Configs by dotted key, and many of them as what they share and what each has of its own.

A dot within a key of a config, which would be taken for the end of it, is spelt %2E, and a % then %25.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted key → value; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + str(key).replace("%", "%25").replace(".", "%2E")
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The config of which `flat` gives `keys`; raises `ValueError` where a key is another's folder and value."""
    config: dict[str, Any] = {}
    for key, value in keys.items():
        *folders, last = (name.replace("%2E", ".").replace("%25", "%") for name in key.split("."))
        place: Any = config
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ValueError(f"{key} is below another key's value")
        if last in place:
            raise ValueError(f"{key} is there beside what is below it")
        place[last] = value
    return config


def difference(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What makes `base` into `own`, both by dotted key: `set`, key → value, and `unset`, keys; each where it is any.

    1, 1.0 and true are three values.
    """
    changed = {key: value for key, value in own.items() if key not in base or not same(base[key], value)}
    gone = sorted(key for key in base if key not in own)
    return {**({"set": changed} if changed else {}), **({"unset": gone} if gone else {})}


def applied(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with a `difference` made; raises `ValueError` for what is none, or unsets a key that is not there."""
    gone = change.get("unset", ())
    if not change.keys() <= {"set", "unset"} or not isinstance(gone, list | tuple):
        raise ValueError("a difference has set and unset alone, a mapping and a list")
    for key in gone:
        if key not in base:
            raise ValueError(f"{key} is to be unset and is not there")
    return {key: value for key, value in base.items() if key not in gone} | change.get("set", {})


def shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The base to which the `difference`s of `configs` name the fewest keys: of each the most frequent value."""
    base = {}
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config[key] for config in configs if key in config]
        ((text, count),) = Counter(map(_text, values)).most_common(1)
        if len(configs) - count < len(values):
            base[key] = next(value for value in values if _text(value) == text)
    return base


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same in kind too."""
    return _text(one) == _text(other)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
