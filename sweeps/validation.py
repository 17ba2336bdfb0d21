"""Validation of plain values as a dataclass, with errors as one sentence."""

import difflib
import json
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from opd.errors import UserError


def validate(kind: type, values: Any, key: str, owner: str) -> Any:
    """Return the `values` at `key` as a `kind`; `owner` names it in messages.

    Raises:
        UserError: for the first field that is unknown, missing, of the wrong type or out of range.
    """
    try:
        # Strict mode accepts mappings for dataclasses only from JSON.
        return TypeAdapter(kind).validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"]).encode("unicode_escape").decode()
    if first["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(name, [field.name for field in fields(kind)], n=1)
        hint = f"; did you mean {key}.{near[0]}?" if near else ""
        raise UserError(f"{key}.{name}: {owner} has no such key{hint}")
    if first["type"] in ("missing", "missing_argument"):
        raise UserError(f"{key}.{name}: is missing; give it a value")
    right = first["msg"].replace("Input should", "should", 1)
    where = f"{key}.{name}" if name else key
    raise UserError(f"{where}={first['input']!r}: {right[0].lower()}{right[1:]}")
