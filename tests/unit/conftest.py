from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def scripted_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of `tests.unit.scripted`."""
    from tests.unit.scripted import make_models

    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder
