"""Several prompt sets as one, in exact proportions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from opd.data.problem import Problem
from opd.data.prompts import epoch_order
from opd.errors import UserError


def mix(
    sets: Mapping[str, Sequence[Problem]], *, weights: Mapping[str, float | int] | None, num: int | None, seed: int
) -> list[Problem]:
    """Mix sets in proportion to `weights` (None: all problems) into one list; ids become `set/id`, domains stay.

    No problem is taken twice. `num` problems, or as many as use up the scarcest set. Shares are exact up to rounding by
    one problem (largest remainders, the first set first). `seed` decides which problems of a set are taken.

    Raises:
        UserError: for a set that is too small for its share of `num`, or a share that rounds to nothing.
    """
    sizes = {name: len(problems) for name, problems in sets.items()}
    counts = shares(sizes, weights or sizes, num)
    taken = []
    for index, (name, problems) in enumerate(sets.items()):
        order = epoch_order(len(problems), seed=seed, epoch=index)[: counts[name]]
        taken += [replace(problems[place], id=f"{name}/{problems[place].id}") for place in sorted(order.tolist())]
    return taken


def shares(sizes: Mapping[str, int], weights: Mapping[str, float | int], num: int | None) -> dict[str, int]:
    """The number of problems of each set."""
    total = sum(Fraction(str(weights[name])) for name in sizes)
    share = {name: Fraction(str(weights[name])) / total for name in sizes}
    if num is None:
        num = min(int(size / share[name]) for name, size in sizes.items())
    counts = {name: int(num * share[name]) for name in sizes}
    # Python's sort is stable: of equal remainders the first set's comes first.
    for name in sorted(sizes, key=lambda name: counts[name] - num * share[name])[: num - sum(counts.values())]:
        counts[name] += 1
    for name, count in counts.items():
        if count > sizes[name]:
            raise UserError(
                f"sources.{name}: has {sizes[name]} problems, but its share of num={num} is {count}; set num to at "
                f"most {min(int(size / share[each]) for each, size in sizes.items())}, or a smaller weight"
            )
        if not count:
            raise UserError(
                f"weights.{name}={weights[name]}: its share of {num} problems is zero; give it more, or leave it out"
            )
    return counts
