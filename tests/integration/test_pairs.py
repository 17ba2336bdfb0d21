"""Every pair of method choices runs a step that learns, or is refused in one sentence; and neither is ignored."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from opd.errors import UserError
from tests.covering import a_third
from tests.integration.conftest import composed, composed_by_hydra
from tests.integration.pairs import BASE, CHOICES, DOMAINS, KNOBS, SEVERAL, World, is_clear, opened, settings

METHODS = [choice for choice in CHOICES if choice not in KNOBS]
# What a bare choice is refused with, where it cannot be without another.
BARE = {
    "support=full whitening=batch": "support and whitening: ",
    "support=topk whitening=batch": "support and whitening: ",
    **{f"ensemble={name}": f"{name} takes at least 2 teachers, not 1" for name in SEVERAL.split("|")},
    "ensemble=by_domain": "ensemble.domain: has no value; give it one",
    f"ensemble=by_domain {DOMAINS}": "by_domain takes at least 2 teachers, not 1",
    "teacher=ladder": "single takes exactly 1 teacher, not 3",
    "teacher=ladder ensemble=geometric ensemble.normalize=true": "ensemble.normalize and support: ",
    "divergence=split": "set filter=partition too",
    "filter=partition": "set divergence=split too",
    "filter=kl filter.scope=sequence filter.prefix_length=3": "filter.p_min and filter.scope: ",
    "credit=sequence": "set gamma=1.0 instead of 0.0",
    "mini_batch_size=2": "set clip.low and clip.high",
    "shaping.anchor=x": "no term uses the anchor",
}


@pytest.fixture(scope="module")
def world(models: Path, small_run: list[str]) -> Iterator[World]:
    with opened(small_run, models) as world:
        yield world


@pytest.mark.parametrize("choice", a_third(METHODS))
def test_a_method_beside_every_other_learns_or_is_refused(choice: str, world: World):
    pairs = [(choice, other) for other in METHODS[METHODS.index(choice) + 1 :] if group(other) != group(choice)]
    assert [f"{pair}: {said}" for pair in pairs if (said := world.complaint(*pair))] == []


def group(choice: str) -> str:
    return choice.partition("=")[0]


@pytest.mark.parametrize("bare", BARE)
def test_what_needs_another_is_refused_without_it(bare: str, small_run: list[str]):
    with pytest.raises(UserError) as refused:
        composed([*small_run, *bare.split()])
    assert BARE[bare] in str(refused.value) and is_clear(str(refused.value))


@pytest.mark.parametrize(
    "choices",
    [
        ("filter=partition", "filter.scope=group"),
        ("ensemble=by_domain", "shaping=extrapolated"),
        ("teacher=ladder", "mini_batch_size=2"),
        ("rollout_correction=icepop", "filter.exclude_ids=[6,8,10,12,14,16,18,20]"),
    ],
)
def test_pairs_have_the_config_that_the_command_line_gives(choices: tuple[str, str], world: World):
    given = settings(*choices) | BASE
    overrides = [f"{key}={value.replace('ANCHOR', str(world.anchor))}" for key, value in given.items()]
    assert world.config(given) == composed_by_hydra([*world.overrides, *overrides])


def test_a_student_that_is_its_own_anchor_and_teacher_learns_nothing_at_first(world: World):
    for shaping in ("near_start", "extrapolated"):
        assert world.step("teacher=self", f"shaping={shaping}", "shaping.anchor=self")[1] == (0, 0)


def test_pass_rate_weights_teach_nothing_where_nothing_is_solved_or_all_is(world: World):
    for grade in (False, True):
        world.grade([grade])
        assert world.step("shaping=pass_rate")[1] == (0, 0)
    world.grade([True, False])
    assert world.step("shaping=pass_rate")[1][1] > 0
