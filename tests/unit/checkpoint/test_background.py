import threading

import pytest

from opd.checkpoint.background import Background


def test_work_is_done_beside_and_in_order():
    gate, done = threading.Event(), []

    def slow() -> None:
        gate.wait(10)
        done.append(1)

    with Background(asynchronous=True) as background:
        background.submit(slow)
        assert done == []
        gate.set()
        background.submit(lambda: done.append(2))
    assert done == [1, 2]


def test_without_threads_it_is_done_at_once():
    done = []
    Background(asynchronous=False).submit(lambda: done.append(1))
    assert done == [1]


def fail() -> None:
    raise OSError(28, "No space left on device")


def test_a_failure_is_told_once_and_before_the_next_piece_of_work():
    background, done = Background(asynchronous=True), []
    background.submit(fail)
    with pytest.raises(OSError, match="No space"):
        background.submit(lambda: done.append(1))
    assert not background.failed and done == []
    background.submit(lambda: done.append(1))
    background.wait()
    assert done == [1]


def test_a_failure_at_the_end_is_not_lost():
    with pytest.raises(OSError, match="No space"), Background(asynchronous=True) as background:
        background.submit(fail)


def test_what_ends_the_run_is_reported_before_a_failure_of_the_work():
    with pytest.raises(ValueError, match="first"), Background(asynchronous=True) as background:
        background.submit(fail)
        raise ValueError("first")
