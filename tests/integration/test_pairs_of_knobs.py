"""Every knob beside every other choice: as `test_pairs.py`, in a file of its own so that both run at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.covering import a_third
from tests.integration.pairs import CHOICES, KNOBS, World, opened


@pytest.fixture(scope="module")
def world(models: Path, small_run: list[str]) -> Iterator[World]:
    with opened(small_run, models) as world:
        yield world


@pytest.mark.parametrize("knob", a_third(KNOBS))
def test_a_knob_beside_every_other_choice_learns_or_is_refused(knob: str, world: World):
    pairs = [(other, knob) for other in CHOICES[: CHOICES.index(knob)] if other.split("=")[0] != knob.split("=")[0]]
    assert [f"{pair}: {said}" for pair in pairs if (said := world.complaint(*pair))] == []
