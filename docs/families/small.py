"""A small model of any family of transformers, with random weights that show what the family computes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

FAMILIES: Mapping[str, str] = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # model_type: class
LARGEST_LOGIT = 20.0

_KNOWN = yaml.safe_load(Path(__file__).with_name("sizes.yaml").read_text())
_SIZES = {name: size for each in _KNOWN["sizes"] for size, names in each.items() for name in names}


def config_of(family: str, tokens: Mapping[str, int]) -> PreTrainedConfig:
    """The family's own default config with small sizes; `tokens` are the tokenizer's `vocab_size` and
    ids of `pad_token_id`, `bos_token_id` and `eos_token_id`. A layer of each kind is left.
    """
    kind = CONFIG_MAPPING[family]
    corrections = _KNOWN["families"].get(family, {})
    start = kind(**corrections.get("start", {})).to_dict()
    return kind(**_merged(_shrunk(start, tokens), corrections.get("then", {})))


def model_of(family: str, tokens: Mapping[str, int], *, seed: int = 0) -> PreTrainedModel:
    """The family's causal model with such a config: matrices and norms random enough that a layer, a mask or a scale
    that is left out shows, the output head scaled until the largest logit is about `LARGEST_LOGIT`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = family in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES  # as its checkpoints are published
        kind = AutoModelForImageTextToText if whole else AutoModelForCausalLM
        model = kind.from_config(config_of(family, tokens)).float().eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim >= 2 and not re.search(r"A_log|time_|decay", name):
                    weight.normal_(0, 0.25)
                else:
                    weight += 0.1 * torch.randn_like(weight)
            _scale_logits(model, tokens["vocab_size"])
    return model


def published_of(folder: str) -> PreTrainedModel:
    """The model of a folder as transformers alone loads it: the class that its config names, in evaluation mode, with
    an attention that knows soft caps, where there are any.
    """
    config, _ = PreTrainedConfig.get_config_dict(folder)
    capped = "attn_logit_softcapping" in str(config)  # torch's attention leaves them out without a word
    (name,) = config["architectures"]
    how = {"attn_implementation": "eager"} if capped else {}
    return getattr(transformers, name).from_pretrained(folder, **how).eval()


def reads_text(model: PreTrainedModel, ids: Tensor) -> bool:
    """Whether the model's forward takes [1, length] token ids and nothing else."""
    try:
        model(ids)
    except Exception:  # of any type, by what it wants besides
        return False
    return True


def _scale_logits(model: PreTrainedModel, vocab_size: int) -> None:
    head: Any = model.get_output_embeddings()
    ids = torch.arange(3, 3 + 24)[None] % vocab_size
    if head is None or not reads_text(model, ids):
        return
    for _ in range(3):  # once, but for a cap, or an embedding that is the head
        largest = float(model(ids).logits.abs().max())
        for parameter in head.parameters():
            parameter *= LARGEST_LOGIT / largest


def _shrunk(config: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, Any]:
    """The values of a config, and of those within it, with small sizes and the tokenizer's ids; those of images and
    sounds stay out of the vocabulary, so that no text has them.
    """
    kept, count = _layers(config), _count(config)
    small: dict[str, Any] = {}
    for key, value in config.items():
        if key in _KNOWN["left_out"]:
            continue
        if isinstance(value, Mapping) and key.endswith("_config"):
            small[key] = _shrunk(value, tokens)
        elif key in _KNOWN["tokens"]:
            small[key] = None if value is None and key == "bos_token_id" else tokens[_KNOWN["tokens"][key]]
        elif key in _KNOWN["showing"] and value is not None:
            small[key] = _KNOWN["showing"][key]
        elif kept and isinstance(value, list) and len(value) == count:
            small[key] = [value[index] for index in kept]
        elif key in _KNOWN["depths"]:
            small[key] = len(kept) or 2
        elif key in _SIZES and type(value) is int and value > 0:
            small[key] = min(_SIZES[key], value)
        else:
            small[key] = value
    if "kv_lora_rank" in config:  # latent attention has keys for each head
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


def _count(config: Mapping[str, Any]) -> int | None:
    return next((config[key] for key in _KNOWN["depths"] if isinstance(config.get(key), int)), None)


def _layers(config: Mapping[str, Any]) -> list[int]:
    """The first layer of each kind, by all lists that say something of each layer; empty where there are none."""
    count = _count(config)
    lists = [
        value
        for key, value in config.items()
        if key not in _KNOWN["left_out"] and isinstance(value, list) and 1 < len(value) == count
    ]
    if not lists:
        return []
    kinds: dict[str, int] = {}
    for index in range(count or 0):
        kinds.setdefault(str([each[index] for each in lists]), index)
    found = sorted(kinds.values())
    return found if len(found) > 1 else [0, 1]


def _merged(config: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(config.get(key), dict):
            config[key] = _merged(config[key], value)
        else:
            config[key] = value
    return config
