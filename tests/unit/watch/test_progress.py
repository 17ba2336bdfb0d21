"""Where a live bar is shown, and where lines are."""

from opd.watch.progress import Lines, show_progress


def test_lines_without_terminal():
    with show_progress(10) as progress:
        assert isinstance(progress, Lines)
