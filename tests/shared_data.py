"""The real problem sets, which are not part of the repository."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("OPD_SHARED_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
CI = bool(os.environ.get("CI"))  # where what is missing is a failure


def shared(name: str) -> Path:
    """A file of them; without it the test skips, or fails under CI."""
    path = DATA / name
    if not path.exists():
        missing = f"needs {name} of the shared data, which is not at {DATA}"
        pytest.fail(missing) if CI else pytest.skip(missing)
    return path
