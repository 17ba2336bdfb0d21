"""The time that is left, and where lines are written."""

import pytest

from opd.watch.progress import Lines, TimeLeft, clock, shown


def test_time_left_is_recent_steps_and_evaluations_apart():
    left = TimeLeft(num_steps=10, every=4)
    assert left.seconds(0) is None
    left.note(None, 7.0)  # before the first step
    left.note(9.0, None)
    assert left.seconds(1) == 9 * 9.0 + 3 * 7.0  # evaluations after steps 4, 8 and 10
    left.note(2.0, None)  # the first step warmed up, and is forgotten
    left.note(4.0, None)
    left.note(3.0, 5.0)
    assert left.seconds(4) == 6 * 3.0 + 2 * 6.0
    assert left.seconds(10) == 0


def test_a_run_that_is_evaluated_at_its_end_alone_has_one_evaluation_left():
    left = TimeLeft(num_steps=10, every=0)
    left.note(1.0, 8.0)
    assert left.seconds(5) == 5 * 1.0 + 8.0


def test_old_steps_are_forgotten():
    left = TimeLeft(num_steps=1000, every=0)
    for _ in range(48):
        left.note(100.0, None)
    for _ in range(20):
        left.note(1.0, None)
    assert left.seconds(69) == 1000 - 69


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00:01"), (61.0, "0:01:01"), (90_000.0, "25:00:00")])
def test_a_clock_shows_hours_minutes_and_seconds(seconds: float, text: str):
    assert clock(seconds) == text


def test_without_a_terminal_there_are_lines():
    with shown(10, 2) as progress:
        assert isinstance(progress, Lines)
