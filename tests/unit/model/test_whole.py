"""Of a multimodal checkpoint the text model is loaded, and the final checkpoint has the rest as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from opd.checkpoint import store
from opd.checkpoint.store import Learned
from opd.config.schema import Lora, Optim
from opd.model.load import check_weights, load_config, load_model
from opd.model.lora import add_adapters
from opd.model.optim import Optimizer
from opd.model.shapes import shape
from opd.model.widths import cut
from opd.recipes.tokenizer import build_tokenizer
from tests.multimodal import VOCABULARY, random_model
from tests.unit.small import ALONE

PLACE: dict[str, Any] = {"revision": None, "key": "student.model"}
IDS = torch.arange(3, 13)[None]
OPTIM = Optim(
    lr=0.01, schedule="constant", warmup_steps=0, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.0, grad_clip=1.0
)
FAMILIES = ("gemma3", "qwen3_5_moe", "mistral3", "gemma4", "llama4", "qwen3_vl")


def published(family: str, folder: Path, *, shards: str = "50GB") -> Path:
    """A checkpoint as such families are published, with files beside that only the whole model reads."""
    random_model(family).bfloat16().save_pretrained(folder, max_shard_size=shards)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}')
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def logp(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float().log_softmax(-1)


def step(model: Any) -> Optimizer:
    optimizer = Optimizer(model, OPTIM, num_steps=10)
    model(IDS).logits.square().mean().backward()
    optimizer.step(1)
    return optimizer


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_model_computes_what_the_whole_one_does_without_images(family: str, tmp_path: Path):
    source = published(family, tmp_path / "source")
    text = load_model(str(source), dtype="float32", **PLACE)
    whole = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).eval()
    assert text.num_parameters() < whole.num_parameters()
    torch.testing.assert_close(logp(text), logp(whole), rtol=0, atol=2e-6)
    config = load_config(str(source), **PLACE)
    assert type(config) is type(text.config) and shape(config).numbers == text.num_parameters()
    check_weights(str(source), **PLACE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_final_checkpoint_has_the_trained_text_and_the_rest_as_it_was(family: str, tmp_path: Path):
    source, final = published(family, tmp_path / "source", shards="50KB"), tmp_path / "final"
    text = load_model(str(source), dtype="float32", **PLACE)
    learned = Learned(text, str(source), build_tokenizer(), step(text))
    store.final(learned, {"README.md": "A card."}, ALONE)(final, ALONE)

    before, after = tensors(source), tensors(final)
    assert before.keys() == after.keys() == json.loads(index(final).read_text())["weight_map"].keys()
    trained = {name for name, tensor in after.items() if tensor.dtype == torch.float32}
    assert len(trained) == len(text.state_dict()) - len(text.all_tied_weights_keys or {}) + split(family)
    for name, tensor in before.items():
        changes = name in trained and not name.endswith("layer_scalar")  # Gemma 4's, a buffer
        assert torch.equal(tensor.float(), after[name].float()) != changes, name
        assert tensor.shape == after[name].shape, name
    for name in ("config.json", "preprocessor_config.json"):
        assert (final / name).read_bytes() == (source / name).read_bytes()

    again: Any = AutoModelForImageTextToText.from_pretrained(final, dtype=torch.float32, output_loading_info=True)
    whole, found = again
    assert not any(found.values())
    torch.testing.assert_close(logp(whole.eval()), logp(text), rtol=0, atol=2e-6)
    assert torch.equal(logp(load_model(str(final), dtype="float32", **PLACE)), logp(text))


def index(folder: Path) -> Path:
    return folder / "model.safetensors.index.json"


def split(family: str) -> int:
    """The tensors that a checkpoint has more than its text model: four experts for two matrices in two layers, of which
    one has two in one.
    """
    return 2 * (4 * 3 - 2) if family == "qwen3_5_moe" else 0


def test_adapters_are_of_the_text_and_merged_into_it(tmp_path: Path):
    source, final = published("gemma3", tmp_path / "source"), tmp_path / "final"
    text = load_model(str(source), dtype="float32", **PLACE)
    add_adapters(text, Lora(rank=2, alpha=4.0, target_modules="all-linear"), seed=0)
    learned = Learned(text, str(source), build_tokenizer(), step(text))
    expected = logp(text)
    store.final(learned, {}, ALONE)(final, ALONE)
    assert tensors(final).keys() == tensors(source).keys()
    for again in (str(final), str(final / "adapter")):
        if again.endswith("adapter"):
            config = json.loads((final / "adapter" / "adapter_config.json").read_text())
            config["base_model_name_or_path"] = str(source)
            (final / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        torch.testing.assert_close(logp(load_model(again, dtype="float32", **PLACE)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma3", "mistral3"])
def test_a_text_model_that_is_cut_has_its_rows_again_within_the_whole(family: str, tmp_path: Path):
    source, final = published(family, tmp_path / "source"), tmp_path / "final"
    text, size = load_model(str(source), dtype="float32", **PLACE), VOCABULARY - 5
    further = cut(text, size, key="student.model")
    store.final(Learned(text, str(source), build_tokenizer(), step(text), further), {}, ALONE)(final, ALONE)
    assert (final / "config.json").read_bytes() == (source / "config.json").read_bytes()
    whole: Any = AutoModelForImageTextToText.from_pretrained(final, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = whole(IDS).logits[..., :size].float()
    torch.testing.assert_close(logits.log_softmax(-1), logp(text), rtol=0, atol=2e-6)
    before, after = tensors(source), tensors(final)
    assert before.keys() == after.keys()
    wide = [name for name, tensor in before.items() if len(tensor) == VOCABULARY and "embed_tokens" in name]
    assert wide and all(torch.equal(before[name][size:].float(), after[name][size:]) for name in wide)
