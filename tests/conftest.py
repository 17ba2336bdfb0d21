"""Which tests are run apart, and the tests' time by room, the folder that they stand in."""

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import settings

# A limit on an example's time fails on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Rooms that want more than this project's packages, and have a section of .ci/run that brings it.
APART = ("slurm", "vllm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in APART:
            item.add_marker(pytest.mark.apart)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, set[str]] = defaultdict(set)
    reports = [each for found in terminalreporter.stats.values() for each in found]
    for report in reports:
        if isinstance(report, pytest.TestReport):  # of a setup, a test or a teardown, in whichever process it ran
            room = report.nodeid.partition("::")[0].rpartition("/")[0]
            seconds[room] += report.duration
            tests[room].add(report.nodeid)
    if len(seconds) > 1:
        terminalreporter.section("seconds of each room, over all processes")
        for room in sorted(seconds, key=lambda room: -seconds[room]):
            terminalreporter.write_line(f"{seconds[room]:8.1f} s {len(tests[room]):6,} tests  {room}")
        terminalreporter.write_line(f"{sum(seconds.values()):8.1f} s {sum(map(len, tests.values())):6,} tests")
