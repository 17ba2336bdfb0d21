"""The models that come with the package are those of today's recipes.

OPD_RETRAIN=1 makes each again, in some twenty minutes, and compares the weights: of a CPU of the same kind, bit by bit.
"""

import os

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from opd.config.recipe import model_path
from opd.model.load import load_model, load_tokenizer
from opd.recipes import worker
from opd.recipes.make import TRAINED, ensure_models
from sweeps import snapshot
from sweeps.compose import composer

NAMES = ("novice", "first", "second", "third", "fourth")


@pytest.fixture(scope="module")
def recipes():
    with composer() as composed:
        return composed.config(["scale=small", "teacher.models=${scale.ladder}", "ensemble=arithmetic"]).recipes


def test_every_model_of_the_small_world_comes_trained(recipes, tmp_path):
    paths = {name: model_path(name, recipes[name], tmp_path) for name in NAMES}
    assert {folder.name for folder in TRAINED.iterdir()} == {path.name for path in paths.values()}
    assert ensure_models(recipes, tmp_path) == paths
    for path in paths.values():
        model, tokenizer = (load(str(path), revision=None, key="model") for load in (_weights, load_tokenizer))
        assert model.config.vocab_size == len(tokenizer)


def _weights(path, **names):
    return load_model(path, dtype="float32", **names)


@pytest.mark.skipif("OPD_RETRAIN" not in os.environ, reason="OPD_RETRAIN=1 trains the models again")
@pytest.mark.parametrize("name", NAMES)
def test_a_trained_model_can_be_made_again(recipes, tmp_path, name):
    path = model_path(name, recipes[name], tmp_path)
    worker.make(recipes[name], path, lambda _: None)
    again, kept = (load_file(folder / "model.safetensors") for folder in (path, TRAINED / path.name))
    assert_close(again, kept, rtol=0, atol=0)


def test_a_copy_of_the_code_has_the_trained_models_whole(tmp_path):
    copy = snapshot.take(snapshot.current(), tmp_path) / TRAINED.relative_to(snapshot.ROOT)
    assert {file.relative_to(copy) for file in copy.rglob("*")} == {
        file.relative_to(TRAINED) for file in TRAINED.rglob("*")
    }
