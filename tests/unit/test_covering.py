from itertools import combinations, product

import pytest

from tests.covering import covering


@pytest.mark.parametrize(
    ("axes", "most"), [(("abc", "de"), 6), (("abcdefghijk", "uvwxyz", "12345"), 66), (["ab"] * 6, 8)]
)
def test_every_pair_of_values_stands_in_a_row_and_most_rows_of_the_product_are_left_out(
    axes: tuple[str, ...], most: int
):
    rows = covering(*axes)
    assert set(rows) <= set(product(*axes)) and len(set(rows)) == len(rows) <= most
    for one, other in combinations(range(len(axes)), 2):
        assert {(row[one], row[other]) for row in rows} == set(product(axes[one], axes[other]))
    assert rows == covering(*axes)
