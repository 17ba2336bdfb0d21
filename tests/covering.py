"""Fewer tests than a product or a table has: rows that hold every pair of values, and every third of many cases."""

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


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


def a_third(cases: Iterable[Any]) -> list[Any]:
    """Cases for `parametrize`: the first of three stays, the other two are run apart."""
    return [pytest.param(one, marks=[pytest.mark.apart] if place % 3 else []) for place, one in enumerate(cases)]
