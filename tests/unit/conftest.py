from pathlib import Path

import pytest
import torch

from opd.data.batch import Rollout
from tests.unit.small import rollout_of


@pytest.fixture(scope="session")
def scripted_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of `tests.unit.step.scripted`."""
    from tests.unit.step.scripted import make_models

    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def rollout() -> Rollout:
    generator = torch.Generator().manual_seed(1)

    def draw(lengths: list[int]) -> list[list[int]]:
        return [torch.randint(2, 13, (length,), generator=generator).tolist() for length in lengths]

    return rollout_of(draw([3, 1, 5, 2, 4]), draw([2, 6, 1, 9, 4]))
