"""Rules on the number of teachers of an ensemble, and on knobs that depend on it. Nothing here imports torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from opd.errors import UserError

Number = float | int


def refuse_teachers(
    name: str, num_teachers: int, knobs: Mapping[str, Any], *, at_least: int, at_most: int | None
) -> None:
    """Refuses, with `UserError`, a number of teachers or knobs of the ensemble `name` that do not fit each other."""
    if num_teachers < at_least or (at_most is not None and num_teachers > at_most):
        wanted = f"exactly {at_least}" if at_least == at_most else f"at least {at_least}"
        plural = "s" * (at_least > 1)
        raise UserError(f"ensemble {name} takes {wanted} teacher{plural}, not {num_teachers}")
    for knob, refuse in _REFUSALS.items():
        if knobs.get(knob) is not None and (reason := refuse(num_teachers, knobs[knob])):
            raise UserError(f"ensemble.{knob}: with {num_teachers} teachers {reason}, not {knobs[knob]}")


def _bad_boundaries(num_teachers: int, boundaries: Sequence[Number]) -> str | None:
    rising = all(low < high for low, high in zip([0.0, *boundaries], [*boundaries, 1.0], strict=True))
    if len(boundaries) == num_teachers - 1 and rising:
        return None
    return f"it takes {num_teachers - 1} rising numbers inside (0, 1), or null for equal shares"


def _bad_weights(num_teachers: int, weights: Sequence[Number]) -> str | None:
    if len(weights) == num_teachers and all(weight >= 0 for weight in weights) and sum(weights) > 0:
        return None
    return f"it takes {num_teachers} numbers that are not negative and not all 0, or null for equal weights"


def _bad_token(num_teachers: int, token: str) -> str | None:
    return None if "{}" in token else "it takes a text with {} where the teacher's place in the ladder goes"


def _bad_domains(num_teachers: int, domain: Mapping[str, int]) -> str | None:
    if domain and all(0 <= index < num_teachers for index in domain.values()):
        return None
    return f"it takes indices of teachers, 0 to {num_teachers - 1}"


_REFUSALS = {"boundaries": _bad_boundaries, "weights": _bad_weights, "token": _bad_token, "domain": _bad_domains}
