import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from opd.config import recipe as module, worlds
from opd.config.recipe import Recipe, model_path
from opd.errors import UserError
from tests.random_models import SHAPE

TINY: dict[str, Any] = {
    "architecture": {**SHAPE, "init_std": 0.1},
    "start": None,
    "mix": {"addition": [2], "chain": [3]},
    "hints": 0.0,
    "slip": [0.1, 0.1],
    "file": None,
    "template": "raw",
    "max_length": 48,
    "steps": 6,
    "batch_size": 4,
    "lr": 0.01,
    "warmup_steps": 2,
    "schedule": "linear",
    "final_lr": 0.1,
    "betas": [0.9, 0.98],
    "weight_decay": 0.01,
    "grad_clip": 1.0,
    "seed": 0,
}


def recipe(**changes: Any) -> Recipe:
    return TypeAdapter(Recipe).validate_json(json.dumps(TINY | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": None}, "exactly one of architecture and start"),
        ({"start": "somewhere"}, "exactly one of architecture and start"),
        ({"mix": None}, "exactly one of mix and file"),
        ({"file": "data.jsonl"}, "exactly one of mix and file"),
        ({"template": "chat"}, "no chat template"),
        ({"mix": {"division": [2]}}, "mix.division"),
        ({"mix": {"addition": [17]}}, "addition has no difficulty 17"),
        ({"mix": {"addition": []}}, "mix.addition"),
        ({"mix": {"sort": [5], "addition": [2]}}, "the mix names addition, which is a domain of another world"),
        ({"hints": 0.3}, "only the puzzles have hints"),
        ({"hints": 1.5, "mix": {"sort": [5]}}, "hints"),
        ({"slip": [0.5]}, "slip"),
        ({"slip": [0.0, 1.1]}, "slip.1"),
        ({"slip": 0.1}, "slip"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"lr": 0}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"betas": [0.9]}, "betas"),
        ({"betas": [0.9, 1.0]}, "betas.1"),
        ({"schedule": "step"}, "schedule"),
        ({"seed": -1}, "seed"),
        ({"momentum": 0.9}, "momentum"),
        ({"architecture": TINY["architecture"] | {"num_kv_heads": 3}}, "num_heads=2 should be a multiple"),
        ({"architecture": TINY["architecture"] | {"head_dim": 7}}, "architecture.head_dim"),
    ],
)
def test_what_no_model_can_be_made_from_is_refused_by_name(changes: dict, said: str):
    with pytest.raises(ValidationError) as raised:
        recipe(**changes)
    first = raised.value.errors()[0]
    assert said in ".".join(map(str, first["loc"])) + " " + first["msg"]


def test_the_shipped_recipes_are_valid():
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from opd import cli

    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        files = [file for file in (cli.CONF / "recipe").rglob("*.yaml") if file.stem != "base"]
        assert len(files) == 9
        for file in files:
            node: Any = OmegaConf.to_container(compose(str(file.relative_to(cli.CONF).with_suffix(""))))
            for part in file.parent.relative_to(cli.CONF).parts:
                node = node[part]
            assert TypeAdapter(Recipe).validate_json(json.dumps(node)).steps == node["steps"]


def test_a_model_lies_where_its_content_says():
    path = model_path("small", recipe(), Path("models"))
    assert re.fullmatch(r"models/small-[0-9a-f]{8}", str(path))
    assert model_path("small", recipe(), Path("elsewhere")).name == path.name
    assert model_path("other", recipe(), Path("models")).name[-8:] == path.name[-8:]


def test_any_change_of_a_value_is_another_model():
    changes = [{"seed": 1}, {"lr": 0.02}, {"slip": [0.1, 0.2]}, {"mix": {"addition": [3]}}, {"schedule": "cosine"}]
    changes += [{"architecture": TINY["architecture"] | {"init_std": 0.2}}]
    names = {model_path("m", recipe(**change), Path()).name for change in [{}, *changes]}
    assert len(names) == len(changes) + 1


def test_new_code_is_another_model(monkeypatch: pytest.MonkeyPatch):
    before = model_path("m", recipe(), Path())
    with monkeypatch.context() as patched:
        patched.setattr(module, "VERSION", module.VERSION + 1)
        assert model_path("m", recipe(), Path()) != before
    puzzles = recipe(mix={"sort": [5]})
    before_puzzles = model_path("m", puzzles, Path())
    monkeypatch.setattr(worlds, "VERSIONS", worlds.VERSIONS | {"arithmetic": worlds.VERSIONS["arithmetic"] + 1})
    assert model_path("m", recipe(), Path()) != before
    assert model_path("m", puzzles, Path()) == before_puzzles


def test_the_content_of_a_data_file_counts_and_its_place_does_not(tmp_path: Path):
    def named(file: Path) -> str:
        return model_path("m", recipe(mix=None, file=str(file)), tmp_path).name

    first, second = tmp_path / "first.jsonl", tmp_path / "elsewhere" / "first.jsonl"
    second.parent.mkdir()
    first.write_text("1\n")
    second.write_text("1\n")
    before = named(first)
    assert named(second) == before
    first.write_text("2\n")
    assert named(first) != before


def test_the_content_of_a_directory_to_start_from_counts(tmp_path: Path):
    start = tmp_path / "start"
    start.mkdir()
    (start / "config.json").write_text("{}")
    began = replace(recipe(), architecture=None, start=str(start))
    before = model_path("m", began, tmp_path)
    assert model_path("m", began, tmp_path) == before
    (start / "config.json").write_text('{"a": 1}')
    assert model_path("m", began, tmp_path) != before


def test_a_data_file_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"recipes\.m\.file=nowhere\.jsonl: there is no such file"):
        model_path("m", recipe(mix=None, file="nowhere.jsonl"), Path())


def test_finding_a_model_needs_no_torch():
    code = "import sys, opd.config.recipe, opd.sft, opd.data.arithmetic; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
