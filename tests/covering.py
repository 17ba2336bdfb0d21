"""Rows that hold every pair of values, where whole products of axes would be too many tests."""

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any


def covering(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Rows, one value of each axis, such that any two values of two axes stand in a row together; the same every time.

    Greedy: of all rows, the first that holds the most pairs not held yet. At least as many rows as the product of the
    two longest axes.
    """
    values = [list(axis) for axis in axes]
    rows = list(product(*(range(len(axis)) for axis in values)))
    held = [{((i, row[i]), (j, row[j])) for i, j in combinations(range(len(row)), 2)} for row in rows]
    missing, chosen = set[Any]().union(*held), []
    while missing:
        best = max(range(len(rows)), key=lambda at: len(held[at] & missing))
        missing -= held[best]
        chosen.append(rows[best])
    return [tuple(axis[at] for axis, at in zip(values, row, strict=True)) for row in sorted(chosen)]
