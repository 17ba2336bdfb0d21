"""Nested configs by dotted key. A dot within a key is written %2E, and a % then %25."""

from collections.abc import Mapping
from typing import Any


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted key → value; an empty mapping is a value."""
    keys: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + str(key).replace("%", "%25").replace(".", "%2E")
        keys |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return keys


def nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`; raises `ValueError` where a key has both a value and keys below it."""
    config: dict[str, Any] = {}
    for key, value in keys.items():
        *parents, last = (name.replace("%2E", ".").replace("%25", "%") for name in key.split("."))
        place: Any = config
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last in place:
            raise ValueError(f"{key} conflicts with another key")
        place[last] = value
    return config
