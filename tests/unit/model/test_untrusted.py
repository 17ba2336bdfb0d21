"""A model's directory that somebody else has made: nothing in it is run, whatever it is loaded for."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from opd.config.recipe import Architecture
from opd.data.environment import single_turn
from opd.data.problem import Problem
from opd.data.prompts import encode
from opd.errors import UserError
from opd.model.load import load_config, load_ends, load_model, load_tokenizer
from opd.model.shapes import shape
from opd.recipes.build import fresh, save
from opd.recipes.tokenizer import build_tokenizer
from tests.marked import Marked

SMALL = Architecture(
    hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=24,
    max_position_embeddings=64, rope_theta=1e4, tie_embeddings=True, init_std=0.3,
)  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = build_tokenizer()
    save(fresh(SMALL, tokenizer, seed=0), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def program(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text(f"open({str(model / 'mark')!r}, 'w').close()\nclass X: pass\ndef generate(): pass\n")


def own_class(model: Path) -> None:
    program(model, "mine.py")
    edit(model / "config.json", auto_map={"AutoConfig": "mine.X", "AutoModelForCausalLM": "mine.X"}, model_type="mine")


def own_model(model: Path) -> None:
    program(model, "mine.py")
    edit(model / "config.json", auto_map={"AutoModelForCausalLM": "mine.X"})


def own_tokenizer(model: Path) -> None:
    program(model, "mine.py")
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.X", "mine.X"]}, tokenizer_class="X")


def own_generation(model: Path) -> None:
    program(model, "custom_generate/generate.py")
    edit(model / "generation_config.json", custom_generate=str(model))


def own_template(model: Path) -> None:
    call = "cycler.__init__.__globals__.os.system('touch " + str(model / "mark") + "')"
    (model / "chat_template.jinja").write_text("{{ " + call + " }}")


def honest_pickle(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def plain_pickle(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Marked(model / "mark")}))
    (model / "model.safetensors").unlink()


def torch_pickle(model: Path) -> None:
    torch.save({"a": Marked(model / "mark")}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def adapter(model: Path, **knobs: Any) -> None:
    """The model as adapters of itself, which lies beside it."""
    (model / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).rename(model / "base" / name)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    weights = {f"{name}A.weight": torch.zeros(2, 16), f"{name}B.weight": torch.zeros(16, 2)}
    save_file(weights, model / "adapter_model.safetensors", metadata={"format": "pt"})
    known = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    config = {**known, "base_model_name_or_path": str(model / "base"), **knobs}
    (model / "adapter_config.json").write_text(json.dumps(config))


def adapter_import(model: Path) -> None:
    adapter(model, megatron_config={"a": 1}, megatron_core="tests.unit.nothing_of_ours")


def adapter_library(model: Path) -> None:
    adapter(model, auto_mapping={"base_model_class": "system", "parent_library": "os"})


def adapter_pickle(model: Path) -> None:
    adapter(model)
    (model / "adapter_model.safetensors").unlink()
    (model / "adapter_model.bin").write_bytes(pickle.dumps({"a": Marked(model / "mark")}))


def adapter_cache(model: Path) -> None:
    file = model / "cache.pt"
    file.write_bytes(pickle.dumps({"a": Marked(model / "mark")}))
    adapter(model, init_lora_weights="corda", corda_config={"cache_file": str(file), "covariance_file": str(file)})


# what was done to a model → what its refusal says; None: what is ours is loaded in its place
WAYS: dict[Callable[[Path], None], str | None] = {
    own_class: "custom code",
    own_model: None,
    own_tokenizer: None,
    own_generation: None,
    own_template: "chat template refuses the turns",
    honest_pickle: "its weights are a pickle, which can run code; save them as safetensors",
    plain_pickle: "its weights are a pickle",
    torch_pickle: "its weights are a pickle",
    lambda model: edit(model / "config.json", attn_implementation="some/kernel"): "names code to run (attn_implement",
    lambda model: edit(model / "config.json", _attn_implementation_internal="some/kernel"): "names code to run (_attn",
    lambda model: edit(model / "config.json", experts_implementation="some/kernel"): "names code to run (experts_imp",
    lambda model: edit(
        model / "config.json", text_config={"attn_implementation": "a/b:c"}
    ): "names code to run (attn_i",
    lambda model: edit(model / "config.json", use_kernels=True, kernel_config={"RMSNorm": "some/kernel"}): None,
    adapter_import: "megatron_config is set",
    adapter_library: None,
    adapter_pickle: "no model can be loaded",
    adapter_cache: "init_lora_weights='corda' changed the base model",
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_in_a_models_directory_is_run(way: Callable[[Path], None], model: Path):
    way(model)
    said = ""

    def attempt(load: Callable[[], Any]) -> Any:
        nonlocal said
        try:
            return load()
        except UserError as error:
            said += f"{error}\n"
        finally:
            assert not (model / "mark").exists(), "code ran"

    place: dict[str, Any] = {"revision": None, "key": "student.model"}
    if not (model / "adapter_config.json").exists():
        config = attempt(lambda: load_config(str(model), **place))
        assert config is None or shape(config).numbers > 0
        attempt(lambda: load_ends(str(model), revision=None))
    tokenizer = attempt(lambda: load_tokenizer(str(model), **place))
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    if tokenizer.chat_template is not None:
        knobs: dict[str, Any] = {"template": "chat", "system": None, "prefix": "", "suffix": "", "max_prompt_length": 9}
        problem = Problem(id="1", problem="1+1=", answer="2", domain="addition")
        attempt(lambda: encode([problem], tokenizer, **knobs, environment=single_turn()))
    loaded = attempt(lambda: load_model(str(model), dtype="float32", **place))
    assert loaded is None or isinstance(loaded, Qwen3ForCausalLM)
    assert said == "" if WAYS[way] is None else WAYS[way] in said
    assert not (model / "mark").exists(), "code ran"
