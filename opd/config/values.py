"""Types of values that several sections of a config have."""

import json
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from opd.config.recipe import Text

Probability = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


def _weight(value: Any) -> float | list[float]:
    numbers: list[Any] = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(type(each) in (int, float) and 0 <= each < float("inf") for each in numbers):
        raise ValueError("should be a number that is at least 0, or [first, last] along training")
    return [float(each) for each in numbers] if isinstance(value, list) else float(value)


def _moment(value: Any) -> str:
    try:
        return datetime.fromisoformat(value).isoformat() and value
    except (TypeError, ValueError):
        raise ValueError("should be a date (YYYY-MM-DD), or one with a time (YYYY-MM-DDTHH:MM)") from None


def _wanted(value: Any) -> list[str]:
    values: list[Any] = value if isinstance(value, list) else [value]
    if not values or not all(each is None or isinstance(each, str | int | float) for each in values):
        raise ValueError("should be a text, a number, true, false or null, or a list of them")
    return [each if isinstance(each, str) else json.dumps(each) for each in values]


# The values that a field may have, as JSON writes them, texts without quotes: 4 and '4' are alike.
Wanted = Annotated[list[str], PlainValidator(_wanted)]
Moment = Annotated[str, PlainValidator(_moment)]

# The weight of a term of `signal`.
Weight = Annotated[float | list[float], PlainValidator(_weight)]

# A method node: `_target_` and that function's knobs.
Node = dict[str, Any]

# A method that is not a group of its own: the name of one of the group's files, or a node.
Choice = Text | Node
