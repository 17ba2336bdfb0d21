"""The page of faults names tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_fault_on_the_page_is_injected_by_a_test():
    rows = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 20
    for row in rows:
        (file, name) = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)[0]
        assert f"def {name}(" in (ROOT / file).read_text(), row
