"""The text model of a multimodal checkpoint: loaded without the parts that read images and sounds, and written back
among them.

A family's own class reads the checkpoint, so that names and layouts are transformers', and only the text's tensors are
read. What learns is the family's text class where it has one (`Gemma3ForCausalLM`), else its own class without the
other parts.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.utils import (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    VIDEO_PROCESSOR_NAME,
)
from transformers.utils.hub import LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, cached_file

# Files that say what the whole model is, and how it reads images; the text's own are written anew.
_DESCRIBE = (
    CONFIG_NAME,
    PROCESSOR_NAME,
    IMAGE_PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
)


@dataclass(frozen=True, eq=False)
class Whole:
    """The checkpoint that a text model is a part of, in a directory or on the hub, and how names there are made.

    `prefixes`: of the text model's parameters, here and in the whole model; `reading`: as transformers' conversions ask
    a model, those that reading used; `text`: the names of the whole model's parameters that are the text's.
    """

    source: str
    how: Mapping[str, Any]
    prefixes: tuple[tuple[str, str], ...]
    reading: Any
    text: frozenset[str]

    def __deepcopy__(self, _: Any) -> "Whole":
        return self

    def published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The text model's `weights` under the names, and in the layout, of the whole checkpoint."""
        return revert_weight_conversion(self.reading, {self._name(name): tensor for name, tensor in weights.items()})

    def copy_description(self, folder: Path) -> None:
        """Copies what describes the whole model, byte for byte."""
        for name in _DESCRIBE:
            if (file := self._file(name)) is not None:
                shutil.copyfile(file, folder / name)

    def copy_rest(self, target: Path) -> None:
        """Writes the tensors that are not the text's to one file, byte for byte; no file where there are none."""
        rest: dict[str, Tensor] = {}
        for file in self._weights():
            with safe_open(file, "pt") as tensors:
                rest |= {name: tensors.get_tensor(name) for name in tensors.keys() if not self.of_text(name)}  # noqa: SIM118
        if rest:
            save_file(rest, target, {"format": "pt"})

    def of_text(self, name: str) -> bool:
        """Whether the tensor of this name in the checkpoint is read by the text model."""
        conversions = self.reading._weight_conversions or []
        renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
        converters = [each for each in conversions if isinstance(each, WeightConverter)]
        known = dict.fromkeys(self.text, True)
        prefix = self.reading.base_model_prefix
        return any(
            rename_source_key(name, *given, prefix, known)[0] in known for given in ((renamings, converters), ([], []))
        )

    def _name(self, name: str) -> str:
        ours, theirs = next(each for each in self.prefixes if name.startswith(each[0]))
        return theirs + name.removeprefix(ours)

    def _weights(self) -> list[Path]:
        names = [SAFE_WEIGHTS_NAME]
        if self._file(SAFE_WEIGHTS_NAME) is None and (index := self._file(SAFE_WEIGHTS_INDEX_NAME)) is not None:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [Path(cached_file(self.source, name, **self.how)) for name in names]  # pyright: ignore

    def _file(self, name: str) -> Path | None:
        found = cached_file(self.source, name, _raise_exceptions_for_missing_entries=False, **self.how)
        return None if found is None else Path(found)


def whole_of(model: PreTrainedModel) -> Whole | None:
    """What `model` is the text model of; None for a model that has its checkpoint for itself."""
    return getattr(model, "_opd_whole", None)


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the model that is loaded of a checkpoint with this config: of its text class, where it has one."""
    if not _has_text_class(config):
        return config
    text, whole = config.get_text_config(), _class(config)
    if whole is not None and whole._tied_weights_keys and hasattr(config, "tie_word_embeddings"):
        text.tie_word_embeddings = config.tie_word_embeddings  # the whole model's decides
    return text


def build(config: PreTrainedConfig, **how: Any) -> PreTrainedModel:
    """A model with the architecture of the one that is loaded of a checkpoint with this config, and new weights."""
    config = text_config(config)
    whole = reader(config)
    return (
        AutoModelForCausalLM.from_config(config, **how) if whole is None else _text(whole._from_config(config, **how))
    )


def reader(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that reads the text of a multimodal checkpoint; to it the other parts are surplus, and stay without
    storage. None for a checkpoint that has text alone.
    """
    whole: Any = _class(config)
    if whole is None:
        return None

    def state_dict(self: Any, *args: Any, **options: Any) -> dict[str, Any]:
        state = whole.state_dict(self, *args, **options)
        return {name: tensor for name, tensor in state.items() if name.startswith(_places(self))}

    # transformers looks its conversions up by the class's name, and knows its own classes by their module.
    return type(whole.__name__, (whole,), {"state_dict": state_dict, "__module__": whole.__module__})


def other_names(loaded: PreTrainedModel) -> set[str]:
    """The names of parameters that a `reader` did not read, as not the text's."""
    whole: Any = type(loaded).__mro__[1]
    return whole.state_dict(loaded).keys() - loaded.state_dict().keys()


def text_model(loaded: PreTrainedModel, source: str, how: Mapping[str, Any]) -> PreTrainedModel:
    """The text model of what a `reader` loaded from `source`: a directory or, with the settings `how`, on the hub."""
    names, theirs = frozenset(loaded.state_dict()), _places(loaded)
    text = _text(loaded)
    text.generation_config = loaded.generation_config
    # A decoder may be a causal model already, with its head.
    ours = ("",) if f"{_name_of(text, loaded)}." == theirs[0] else theirs if text is loaded else _places(text)
    reading: Any = SimpleNamespace(
        _weight_conversions=loaded._weight_conversions,
        config=loaded.config,
        base_model_prefix=loaded.base_model_prefix,
    )
    prefixes = tuple(zip(ours, theirs, strict=False))
    text._opd_whole = Whole(source, how, prefixes, reading, names)  # pyright: ignore
    return text


def _class(config: PreTrainedConfig) -> Any:
    """The class of a multimodal model with a causal text part; None for any other."""
    text = config.get_text_config()
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or text is config or text.is_encoder_decoder:
        return None
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]


def _has_text_class(config: PreTrainedConfig) -> bool:
    return _class(config) is not None and type(config.get_text_config()) in MODEL_FOR_CAUSAL_LM_MAPPING


def _places(model: PreTrainedModel) -> tuple[str, ...]:
    """What the names of the text's parameters begin with: those of its layers, and those of its head."""
    parts = (model.get_decoder(), model.get_output_embeddings())
    return tuple(f"{_name_of(part, model)}." for part in parts if part is not None)


def _name_of(part: nn.Module, model: nn.Module) -> str | None:
    return next((name for name, module in model.named_modules() if module is part), None)


def _text(loaded: PreTrainedModel) -> PreTrainedModel:
    """The text model of a multimodal one, which is used up."""
    decoder: Any = loaded.get_decoder()
    if not _has_text_class(loaded.config):
        _drop_others(loaded, decoder)
        return loaded
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(decoder.config)]
    if isinstance(decoder, kind):
        return decoder
    head: Any = loaded.get_output_embeddings()
    decoder.config.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    with torch.device("meta"):
        text = kind(decoder.config)
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(head)
    return text.eval()


def _drop_others(model: PreTrainedModel, decoder: nn.Module) -> None:
    """Takes from the model the parts that are neither its decoder nor its head, nor hold one of them."""
    kept = (decoder, model.get_output_embeddings())
    at: nn.Module = model
    while at is not decoder:
        inner = at
        for name, child in list(at.named_children()):
            if any(each is decoder for each in child.modules()):
                inner = child
            elif not any(child is each for each in kept):
                setattr(at, name, None)
        at = inner
