"""The worlds of generated problems: names and ranges, against which the schema checks configs."""

from collections.abc import Mapping, Sequence
from typing import Literal

from opd.errors import UserError

Domain = Literal["addition", "subtraction", "multiplication", "chain"]

# Increase this when the form of a problem or its trace changes: cached models of the old form are then stale.
VERSION = 2

# Digits of the operands (of the first factor in a multiplication), or terms of a chain.
DIFFICULTIES: Mapping[Domain, range] = {
    "addition": range(2, 7),
    "subtraction": range(2, 7),
    "multiplication": range(1, 6),
    "chain": range(3, 9),
}


def check_mix(mix: Mapping[Domain, Sequence[int]]) -> list[tuple[Domain, int]]:
    """The (domain, difficulty) cells of a mix, in its order.

    Raises:
        UserError: for a difficulty that its domain does not have, or an empty mix.
    """
    cells = []
    for domain, difficulties in mix.items():
        allowed = DIFFICULTIES[domain]
        for difficulty in difficulties:
            if difficulty not in allowed:
                raise UserError(
                    f"arithmetic: {domain} has no difficulty {difficulty!r}; it has {allowed[0]} to {allowed[-1]}"
                )
            cells.append((domain, difficulty))
    if not cells:
        raise UserError("arithmetic: the mix is empty; name at least one domain with one difficulty")
    return cells
