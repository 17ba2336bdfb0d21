"""Where a live bar is shown, and where lines are."""

from opd.watch.progress import Lines, show_progress


def test_without_a_terminal_there_are_lines():
    with show_progress(10) as progress:
        assert isinstance(progress, Lines)
