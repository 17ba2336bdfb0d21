"""Parsing of a resolved config into the typed one; errors are one sentence with the key."""

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from opd.config.hints import no_such_key
from opd.config.schema import RunConfig
from opd.errors import UserError


def parse(config: Mapping[str, Any]) -> RunConfig:
    """A resolved config → `RunConfig`.

    Raises:
        UserError: for the first key that is unknown, missing, unresolved, of the wrong type or out of range, by name.
    """
    try:
        return _validated(config)
    except ValidationError as error:
        raise UserError(_sentence(error.errors(include_url=False)[0], config)) from None


def check_partial(config: Mapping[str, Any]) -> None:
    """Check a partial config: as `parse`, but keys may be missing.

    Raises:
        UserError: for the first key that is unknown, unresolved, of the wrong type or out of range, by name.
    """
    try:
        _validated(config)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            if problem["type"] not in _MISSING:
                raise UserError(_sentence(problem, config)) from None


def _validated(config: Mapping[str, Any]) -> RunConfig:
    refuse_unresolved(config)
    # Strict mode accepts mappings for dataclasses only from JSON.
    return TypeAdapter(RunConfig).validate_json(json.dumps(dict(config)))


def refuse_unresolved(value: Any, key: str = "") -> None:
    """Refuse interpolations and missing values: a config is recorded as it is and read again as data.

    Raises:
        UserError: for the first of them, or the first value of a type that configs cannot have.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            path = f"{key}.{name}" if key else str(name)
            refuse_unresolved(str(name), path)
            refuse_unresolved(inner, path)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            refuse_unresolved(inner, f"{key}.{place}")
    elif isinstance(value, str) and ("${" in value or value == "???"):
        raise UserError(
            f"{key}={reprlib.repr(value)}: is an interpolation or missing; a run's config contains only values"
        )
    elif not isinstance(value, str | int | float | None):
        raise UserError(f"{key}: has a type that configs cannot have, {type(value).__name__}")


_MISSING = ("missing", "missing_argument")


def _sentence(first: Any, config: Mapping[str, Any]) -> str:
    """Return a validation error as one sentence: the key, its value, what would be right."""
    key = ".".join(_keys(first["loc"], config))
    if first["type"] == "unexpected_keyword_argument":
        return no_such_key(key)
    if first["type"] in _MISSING:
        return f"{key}: is missing; give it a value"
    right = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be", 1)
    shown = "" if isinstance(first["input"], Mapping) else f"={reprlib.repr(first['input'])}"
    return f"{key}{shown}: {right[0].lower()}{right[1:]}"


def _keys(location: tuple[int | str, ...], config: Any) -> list[str]:
    # A discriminated union puts its tag into the location; the tag is a value of the config, not a key.
    keys = []
    for depth, part in enumerate(location):
        if isinstance(config, Mapping) and part not in config and depth < len(location) - 1:
            continue
        keys.append(str(part))
        if isinstance(config, Mapping):
            config = config.get(part)
        elif isinstance(config, list) and isinstance(part, int):
            config = config[part]
    return keys
