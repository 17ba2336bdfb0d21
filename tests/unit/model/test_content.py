"""What a model is, apart from its name."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from opd.model.content import model_content, tokenizer_content
from opd.recipes.tokenizer import build_tokenizer
from tests.random_models import save_random


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_random(tmp_path, {"model": {}, "other": {}})
    return tmp_path / "model"


def content(model: Path) -> str:
    return model_content(str(model), revision=None, key="student.model")


def test_it_is_the_hash_of_the_files_that_say_what_the_model_computes(model: Path):
    names = ("config.json", "generation_config.json", "model.safetensors")
    listed = "".join(f"{hashlib.sha256((model / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert content(model) == f"sha256:{hashlib.sha256(listed.encode()).hexdigest()}"
    (model / "README.md").write_text("read by nobody")
    shutil.copytree(model, model.parent / "moved")
    assert content(model) == content(model.parent / "moved") != content(model.parent / "other")


def test_one_bit_of_a_weight_is_another_model(model: Path):
    before = content(model)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert content(model) != before


def test_adapters_are_their_files_and_their_base(model: Path, tmp_path: Path):
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    base = {"base_model_name_or_path": str(model), "peft_type": "LORA", "init_lora_weights": True}
    (adapters / "adapter_config.json").write_text(json.dumps(base))
    before = content(adapters)
    assert before.endswith(f" on {content(model)}")
    shutil.copy(tmp_path / "other" / "model.safetensors", model)
    assert content(adapters) != before


HUB = """
from opd.model.content import model_content
print(model_content("owner/name", revision=None, key="student.model"))
"""


def test_a_model_of_the_hub_is_its_revision(model: Path, tmp_path: Path):
    commit, cache = "0123456789" * 4, tmp_path / "hub" / "models--owner--name"
    shutil.copytree(model, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache.parent)}
    found = subprocess.run([sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"revision:{commit}"


def test_a_tokenizer_is_its_tokens_roles_and_template():
    plain, changed, ending = build_tokenizer(), build_tokenizer(), build_tokenizer()
    changed.chat_template = "{{ messages }}"
    ending.eos_token = "<|teacher-0|>"
    found = [tokenizer_content(each) for each in (plain, build_tokenizer(), changed, ending)]
    assert found[0] == found[1] and len(set(found)) == 3
