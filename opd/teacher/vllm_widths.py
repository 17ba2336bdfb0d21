"""A vLLM engine whose model is wider than the run's vocabulary: its weights are cut as they are read."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from opd.model.widths import narrowed, width

FORMAT = "opd-narrowed"  # the name under which vLLM finds our loader


def narrow_loading(model: PreTrainedModel, rows: int) -> dict[str, Any]:
    """Settings of an engine that loads a checkpoint of `model` (on the device "meta") cut to so many ids; none where it
    has no more. To be called where vLLM may be imported.
    """
    if width(model.config) <= rows:
        return {}
    from vllm.model_executor.model_loader import register_model_loader  # pyright: ignore
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader  # pyright: ignore

    own, ends = model.config.get_text_config().vocab_size, _ends(model)

    class Narrowed(DefaultModelLoader):
        def __init__(self, load_config: Any):
            super().__init__(replace(load_config, load_format="safetensors"))  # never a pickle

        def get_all_weights(self, *of: Any) -> Iterator[tuple[str, Tensor]]:
            for name, tensor in super().get_all_weights(*of):
                wide = name.endswith(ends) and tensor.shape[:1] == (own,)
                yield name, tensor[:rows] if wide else tensor

    register_model_loader(FORMAT)(Narrowed)
    return {"load_format": FORMAT, "hf_overrides": partial(_narrowed, rows=rows)}


def _narrowed(config: PreTrainedConfig, rows: int) -> PreTrainedConfig:
    # vLLM also asks what would become of a config that has nothing but the name of its family.
    return narrowed(config, rows) if hasattr(config.get_text_config(), "vocab_size") else config


def _ends(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of embedding and head, without what a checkpoint may have before them."""
    ends = [(model.get_input_embeddings(), "weight"), (head := model.get_output_embeddings(), "weight"), (head, "bias")]
    paths = {id(module): path.rpartition(".")[2] for path, module in model.named_modules()}
    return tuple(f"{paths[id(module)]}.{name}" for module, name in ends)
