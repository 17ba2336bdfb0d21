"""The worlds of generated problems: names and ranges, against which the schema checks configs."""

from collections.abc import Mapping, Sequence
from typing import Literal

from opd.errors import UserError

World = Literal["arithmetic", "puzzles"]
Domain = Literal["addition", "subtraction", "multiplication", "chain", "sort", "ascend"]
Hint = Literal["half", "solution"]

# Increase a world's when the form of its problems or traces changes: cached models of the old form are then stale.
VERSIONS: Mapping[World, int] = {"arithmetic": 2, "puzzles": 1}

# Digits of the operands (of the first factor in a multiplication), terms of a chain, or symbols of a puzzle.
DIFFICULTIES: Mapping[Domain, range] = {
    "addition": range(2, 7),
    "subtraction": range(2, 7),
    "multiplication": range(1, 6),
    "chain": range(3, 9),
    "sort": range(3, 11),
    "ascend": range(4, 21),
}

_PUZZLES = ("sort", "ascend")


def world_of(mix: Mapping[Domain, Sequence[int]]) -> World:
    """The world of a mix, by its first domain."""
    return "puzzles" if next(iter(mix), None) in _PUZZLES else "arithmetic"


def check_mix(mix: Mapping[Domain, Sequence[int]]) -> list[tuple[Domain, int]]:
    """The (domain, difficulty) cells of a mix, in its order.

    Raises:
        UserError: for a difficulty that its domain does not have, a domain of another world, or an empty mix.
    """
    cells, world = [], world_of(mix)
    for domain, difficulties in mix.items():
        if world_of({domain: difficulties}) != world:
            raise UserError(
                f"{world}: the mix names {domain}, which is a domain of another world; a mix is of one world"
            )
        allowed = DIFFICULTIES[domain]
        for difficulty in difficulties:
            if difficulty not in allowed:
                raise UserError(
                    f"{world}: {domain} has no difficulty {difficulty!r}; it has {allowed[0]} to {allowed[-1]}"
                )
            cells.append((domain, difficulty))
    if not cells:
        raise UserError(f"{world}: the mix is empty; name at least one domain with one difficulty")
    return cells
