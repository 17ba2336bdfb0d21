"""What a model's directory says it is, is what is loaded, or it is refused by name."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from opd.errors import UserError
from opd.model.load import check_weights, load_config, load_model, max_positions
from opd.recipes.build import fresh, save
from opd.recipes.tokenizer import build_tokenizer
from tests.unit.model.test_untrusted import SMALL, edit
from tests.unit.rollout.families import build

PLACE: dict[str, Any] = {"revision": None, "key": "student.model"}
IDS = torch.tensor([[5, 6, 7, 8, 9]])
LAYER = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = build_tokenizer()
    save(fresh(SMALL, tokenizer, seed=0), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_attention_is_transformers_choice_or_the_one_that_is_wanted(model: Path):
    load = partial(load_model, str(model), dtype="float32", **PLACE)
    plain, eager = load(), load(implementation="eager")
    assert (plain.config._attn_implementation, eager.config._attn_implementation) == ("opd_packed", "eager")
    torch.testing.assert_close(eager(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"compute.attention=flash_attention_2: .* set compute.attention=null$"):
        load(implementation="flash_attention_2")


def test_soft_caps_of_attention_are_never_ignored(tmp_path: Path):
    build("gemma2-capped").save_pretrained(tmp_path)
    load = partial(load_model, str(tmp_path), dtype="float32", **PLACE)
    assert load().config._attn_implementation == "eager"
    with pytest.raises(UserError, match=r"compute.attention=sdpa: it ignores the soft caps of student.model="):
        load(implementation="sdpa")


def rewrite(model: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    weights = change(load_file(model / "model.safetensors"))
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda w: {f"module.{name}": tensor for name, tensor in w.items()},
            "others, but module.model.embed_tokens",
        ),
        (lambda w: {name: tensor for name, tensor in w.items() if name != LAYER}, f"has no {LAYER}, unlike the Qwen3"),
        (lambda w: w | {"model.layers.7.mlp.up_proj.weight": torch.zeros(2)}, "its checkpoint has model.layers.7.mlp"),
        (lambda w: w | {LAYER: torch.zeros(3, 16)}, f"has another shape of {LAYER}"),
        (lambda w: w | {f"{LAYER}_scale": torch.zeros(24)}, f"its checkpoint has {LAYER}_scale"),
    ],
    ids=["a prefix", "one is missing", "one too many", "another shape", "quantized"],
)
def test_a_checkpoint_of_another_model_is_refused_by_its_keys(change: Callable, said: str, model: Path):
    rewrite(model, change)
    for load in (lambda: load_model(str(model), dtype="float32", **PLACE), lambda: check_weights(str(model), **PLACE)):
        with pytest.raises(UserError) as refused:
            load()
        assert str(refused.value).startswith(f"student.model={str(model)!r}: ") and said in str(refused.value)


def test_what_families_leave_in_their_checkpoints_is_harmless(model: Path):
    expected = load_model(str(model), dtype="float32", **PLACE)(IDS).logits
    names = ("model.layers.0.self_attn.rotary_emb.inv_freq", "mtp.fc.weight")
    rewrite(model, lambda weights: weights | {name: torch.zeros(2) for name in names})
    assert torch.equal(load_model(str(model), dtype="float32", **PLACE)(IDS).logits, expected)
    check_weights(str(model), **PLACE)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/model.safetensors", "in/model.safetensors"])
def test_an_index_cannot_name_files_elsewhere(name: str, model: Path):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model.parent / "model.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights, name)}))
    with pytest.raises(UserError, match=f"index.json names '{name}', which is not a file in that directory"):
        load_model(str(model), dtype="float32", **PLACE)


@pytest.mark.parametrize("inner", [{"_attn_implementation": "a/b"}, {"parts": [{"attn_implementation": {"": "a/b"}}]}])
def test_code_is_named_however_deep_it_lies(inner: dict, model: Path):
    edit(model / "config.json", text_config={"vision_config": inner})
    with pytest.raises(UserError, match="names code to run"):
        load_config(str(model), **PLACE)


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({}, 64),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, 256),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4,
                },
            },
            131072,
        ),
        ({"max_position_embeddings": 128, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 256),
    ],
)  # fmt: skip
def test_positions_count_what_a_stretched_rope_adds(changes: dict, positions: int, model: Path):
    edit(model / "config.json", **changes)
    assert max_positions(load_config(str(model), **PLACE)) == positions


# ---- adapters

LINEAR = ["q_proj", "v_proj", "up_proj", "down_proj"]
KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR),
    "rank-stabilized": lambda: peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=LINEAR),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=LINEAR),
    "norms besides": lambda: peft.LoraConfig(r=4, target_modules=LINEAR, modules_to_save=["norm"]),
    "ranks by layer": lambda: peft.LoraConfig(r=4, target_modules=LINEAR, rank_pattern={"v_proj": 2}),
    "new tokens": lambda: peft.LoraConfig(r=4, target_modules=LINEAR, trainable_token_indices=[5, 6]),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=LINEAR),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=LINEAR),
    "ia3": lambda: peft.IA3Config(target_modules=LINEAR, feedforward_modules=["down_proj"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, target_modules=LINEAR),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]),
}


def adapters(model: Path, config: peft.PeftConfig) -> Path:
    """A directory of adapters of the model, with weights that are not those which they start with."""
    config.task_type = peft.TaskType.CAUSAL_LM
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(model.parent / "adapters")
    return model.parent / "adapters"


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_every_kind_are_what_peft_makes_of_them(kind: str, model: Path):
    folder = adapters(model, KINDS[kind]())
    plain = AutoModelForCausalLM.from_pretrained(model)
    before = plain(IDS).logits
    expected = peft.PeftModel.from_pretrained(plain, str(folder))(IDS).logits
    assert not torch.allclose(before, expected, atol=0.01)
    loaded = load_model(str(folder), dtype="float32", **PLACE)
    torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert type(loaded).__name__ == "Qwen3ForCausalLM" and all(each.requires_grad for each in loaded.parameters())
    loaded.save_pretrained(model.parent / "merged")
    again = load_model(str(model.parent / "merged"), dtype="float32", **PLACE)
    assert torch.equal(again(IDS).logits, loaded(IDS).logits)
    assert load_config(str(folder), **PLACE).hidden_size == SMALL.hidden_size


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "adapters of the kind 'PREFIX_TUNING' are not part of a model's weights"),
        ({"peft_type": ["LORA"]}, "adapters of the kind"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changed the base model"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication is set"),
        ({"base_model_name_or_path": 5}, "names no base model"),
        ({"base_model_name_or_path": "adapters"}, "has adapters too; merge those first"),
    ],
)
def test_adapters_that_do_not_merge_are_refused_by_name(changes: dict, said: str, model: Path):
    folder = adapters(model, KINDS["lora"]())
    if changes.get("base_model_name_or_path") == "adapters":
        changes = {"base_model_name_or_path": str(folder)}
    edit(folder / "adapter_config.json", **changes)
    with pytest.raises(UserError) as refused:
        load_model(str(folder), dtype="float32", **PLACE)
    assert said in str(refused.value)


def test_adapters_without_their_weights_are_refused(model: Path):
    folder = adapters(model, KINDS["lora"]())
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    weights.pop(min(weights))
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="some adapters have no weights"):
        load_model(str(folder), dtype="float32", **PLACE)


HUB = """
import sys, torch
from opd.errors import UserError
from opd.model.load import load_model
for revision in sys.argv[1:]:
    try:
        model = load_model("owner/name", revision=revision, dtype="float32", key="student.model")
        print(model(torch.arange(8)[None] % 13).logits.double().sum().item())
    except UserError as error:
        print(error)
"""


def test_adapters_on_the_hub_are_those_of_the_revision_and_never_a_pickle(model: Path, tmp_path: Path):
    cache = tmp_path / "hub" / "models--owner--name"
    first = shutil.copytree(adapters(model, KINDS["lora"]()), cache / "snapshots" / ("1" * 40))
    second = shutil.copytree(first, cache / "snapshots" / ("2" * 40))
    weights = {name: 2 * value for name, value in load_file(second / "adapter_model.safetensors").items()}
    save_file(weights, second / "adapter_model.safetensors", metadata={"format": "pt"})
    pickled = shutil.copytree(first, cache / "snapshots" / ("3" * 40))
    (pickled / "adapter_model.safetensors").unlink()
    torch.save(weights, pickled / "adapter_model.bin")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("1" * 40)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache.parent)}
    given = [sys.executable, "-c", HUB, "main", *(digit * 40 for digit in "123")]
    said = subprocess.run(given, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    ids = torch.arange(8)[None] % 13
    ours = [
        load_model(str(each), dtype="float32", **PLACE)(ids).logits.double().sum().item() for each in (first, second)
    ]
    assert [float(line) for line in said[:3]] == pytest.approx([ours[0], *ours], rel=1e-6) and ours[0] != ours[1]
    assert "no model can be loaded: it has no adapter_model.safetensors" in said[3]
