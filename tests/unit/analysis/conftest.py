from pathlib import Path

import pytest

from tests.unit.analysis.fake_runs import write_broken, write_demo
from tests.unit.analysis.published_runs import write_published


@pytest.fixture(scope="session")
def demo_runs(tmp_path_factory) -> Path:
    """A folder with the runs of `fake_runs.write_demo`, to read only."""
    root = tmp_path_factory.mktemp("demo")
    write_demo(root)
    return root


@pytest.fixture(scope="session")
def all_runs(tmp_path_factory) -> Path:
    """The demo's runs with the broken and hostile ones beside them, to read only."""
    root = tmp_path_factory.mktemp("all")
    write_demo(root)
    write_broken(root)
    return root


@pytest.fixture(scope="session")
def published_runs(tmp_path_factory) -> Path:
    """A folder with the runs of `published_runs.write_published`, to read only."""
    root = tmp_path_factory.mktemp("published")
    write_published(root)
    return root
