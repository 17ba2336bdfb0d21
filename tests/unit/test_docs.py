"""The pages that are made from the code say what the code says."""

import pytest

from docs import tables


@pytest.mark.parametrize("page", ["methods", "refusals"])
def test_the_committed_page_is_what_the_code_gives(page: str):
    made, committed = getattr(tables, page)(), (tables.DOCS / f"{page}.md").read_text()
    assert committed == made, f"docs/{page}.md is out of date: run make docs"


def test_every_knob_of_shaping_is_in_the_tables():
    assert not tables.missing_knobs()


def test_every_experiment_is_in_the_tables_or_changes_no_method():
    """Lengths, epochs, teachers, temperatures and numbers of samples are no method."""
    page = tables.methods()
    unnamed = {name for name in tables.experiments() if f"`{name}`" not in page}
    assert unnamed == {
        *("half_length", "double_length", "two_epochs", "prompts_reused", "one_sample", "eight_samples"),
        *("teacher_smallest", "teacher_second", "teacher_third", "teacher_largest", "self_teacher"),
        *("temperature_0_1", "temperature_0_5", "temperature_1_2"),
        *("mis",),
    }


def test_a_cell_cannot_break_its_table():
    assert tables.table(("a", "b"), [("x | y", "z")]) == "| a | b |\n| --- | --- |\n| x \\| y | z |\n"
