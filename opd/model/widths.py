"""Heads of unequal width over one tokenizer: the narrowest is the run's vocabulary, and wider models are cut to it.

The models of a family may have output heads of different numbers of rows, more than their tokenizer has tokens (of
Qwen2.5, 151936 and 152064). What one model gives to an id that another does not have cannot be compared, so such ids
leave before any weight is used: the further rows of embedding and head, the head's bias, and the config's `vocab_size`.
Nothing else need know of them. A student gets its own back in its final checkpoint.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from opd.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """The ids that all models of a run have: below `size`. `heads`: the rows of each one's output head, by config key;
    `asked`: student.vocab_size.

    Raises:
        UserError: where more are asked for than the narrowest head has.
    """

    heads: Mapping[str, int]
    asked: int | None

    def __post_init__(self) -> None:
        narrowest = min(self.heads, key=lambda key: self.heads[key])
        if self.asked is not None and self.asked > self.heads[narrowest]:
            raise UserError(
                f"student.vocab_size={self.asked}: the output head of {narrowest} has {self.heads[narrowest]} rows; "
                "set at most that many, or null"
            )

    @property
    def size(self) -> int:
        return min(self.heads.values()) if self.asked is None else self.asked

    @property
    def source(self) -> str:
        """The key that says its size."""
        return "student.vocab_size" if self.asked is not None else min(self.heads, key=lambda key: self.heads[key])

    def said(self) -> list[str]:
        """A sentence about the models that are cut, where there are any."""
        wider = [f"{key} ({rows} rows)" for key, rows in self.heads.items() if rows > self.size]
        if not wider:
            return []
        return [
            f"the vocabulary is the {self.size} ids of {self.source}: of the output head of {' and '.join(wider)}, "
            "further rows take no part"
        ]

    def check(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> None:
        """Refuses a vocabulary without a token that texts are made of, or without one that ends them.

        Tokens added to the tokenizer's own may lie beyond it, as those for images do: a prompt with one is refused.

        Raises:
            UserError: with the key and the numbers.
        """
        added = tokenizer.added_tokens_decoder
        last = max((index for index in tokenizer.get_vocab().values() if index not in added), default=-1)
        if last >= self.size:
            raise UserError(
                f"{self.source}: its vocabulary is {self.size} ids, and the tokenizer has tokens up to id {last}; at "
                f"least {last + 1} are needed"
            )
        if beyond := [index for index in stop_ids if index >= self.size]:
            token = tokenizer.convert_ids_to_tokens(beyond[0])
            raise UserError(
                f"student.stop_tokens: {token!r} has the id {beyond[0]}, and the vocabulary is the {self.size} ids of "
                f"{self.source}; name tokens that all models have"
            )


@dataclass(frozen=True)
class Further:
    """What `cut` took from a model: the further rows of its weights by name, on the CPU, and settings of its config."""

    rows: Mapping[str, Tensor]
    settings: Mapping[str, Any]

    def joined(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the cut model, in full, with the further rows of those that had more."""
        return {
            name: torch.cat([weight, self.rows[name].to(weight)]) if name in self.rows else weight
            for name, weight in weights.items()
        }

    def save_config(self, model: PreTrainedModel, folder: Path) -> None:
        """Writes the model's config with the settings that it had."""
        config = copy.deepcopy(model.config)
        for name, value in self.settings.items():
            setattr(config.get_text_config(), name, value)
        config.save_pretrained(folder)


def width(config: PreTrainedConfig) -> int:
    """The ids that a model has logits for: the rows of its output head, less those that some families cut off."""
    text = config.get_text_config()
    return min(text.vocab_size, getattr(text, "unpadded_vocab_size", None) or text.vocab_size)


def narrowed(config: PreTrainedConfig, rows: int) -> PreTrainedConfig:
    """The config of the model that is cut to so many rows; itself, where it has no more."""
    if width(config) <= rows:
        return config
    config = copy.deepcopy(config)
    _narrow(config, rows)
    return config


def cut(model: PreTrainedModel, rows: int, *, key: str) -> Further | None:
    """Cuts the model to the first `rows` ids, in place; returns what was taken, None where it has no more.

    Tied weights stay tied. Weights that are looked up by id within the layers stay as they are.

    Raises:
        UserError: where the model's logits are not the first of those it had; `key` is the config key to name.
    """
    if width(model.config) <= rows:
        return None
    own = model.config.get_text_config().vocab_size
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    weights = [getattr(embedding, "weight", None), getattr(head, "weight", None), getattr(head, "bias", None)]
    wide: dict[int, Tensor] = {id(weight): weight for weight in weights if weight is not None}
    if not isinstance(head, nn.Linear) or any(len(weight) != own for weight in wide.values()):
        raise UserError(_cannot(model, rows, own, key))
    before = _logits(model, rows)
    further: dict[str, Tensor] = {}
    kept = {
        address: nn.Parameter(weight.detach()[:rows].clone(), requires_grad=weight.requires_grad)
        for address, weight in wide.items()
    }
    for path, module in model.named_modules(remove_duplicate=False):
        for name, weight in [*module.named_parameters(recurse=False)]:
            if id(weight) in kept:
                further[f"{path}.{name}"] = weight.detach()[rows:].to("cpu", copy=True)
                setattr(module, name, kept[id(weight)])
    head.out_features = rows
    if isinstance(embedding, nn.Embedding):
        embedding.num_embeddings = rows
        if embedding.padding_idx is not None and embedding.padding_idx >= rows:
            embedding.padding_idx = None
    settings = _narrow(model.config, rows)
    after = _logits(model, rows)
    if after.shape[-1] != rows or not torch.allclose(after, before[..., :rows], rtol=1e-2, atol=1e-3):
        raise UserError(_cannot(model, rows, own, key))
    return Further(further, settings)


def unused_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """The ids of a vocabulary that are no token of the tokenizer: they can be sampled, and are read as no text."""
    return torch.tensor(sorted(set(range(size)) - set(tokenizer.get_vocab().values())), dtype=torch.long)


def _narrow(config: PreTrainedConfig, rows: int) -> dict[str, Any]:
    """Changes the config, in place; returns what it had."""
    text = config.get_text_config()
    had = {"vocab_size": text.vocab_size}
    text.vocab_size = rows
    if isinstance(pad := getattr(text, "pad_token_id", None), int) and pad >= rows:  # such a config makes no model
        had["pad_token_id"], text.pad_token_id = pad, None
    return had


@torch.inference_mode()
def _logits(model: PreTrainedModel, rows: int) -> Tensor:
    return model(torch.arange(2, device=model.device)[None] % rows).logits.float()


def _cannot(model: PreTrainedModel, rows: int, own: int, key: str) -> str:
    return (
        f"{key}: the output head of this {type(model).__name__} cannot be cut from {own} rows to the {rows} that all "
        "models of the run have; choose models with heads of one width"
    )
