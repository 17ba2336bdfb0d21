"""Models that are a directory of peft's adapters beside a base model: which model that is, and the two merged."""

import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from opd.errors import UserError, first_line
from opd.records.files import RecordError, read_json

_WEIGHTS = "adapter_model.safetensors"

# Kinds that are merged into the weights; the others change what a model reads, or choose among experts.
_MERGED = re.compile(
    "ADALORA|BOFT|BONE|C3A|FOURIERFT|HRA|IA3|LN_TUNING|LOHA|LOKR|LORA|MISS|OFT|RANDLORA|ROAD|SHIRA|TRAINABLE_TOKENS"
    "|VBLORA|VERA"
)
# Ways to begin that leave the base as it is; the others (PiSSA, OLoRA, …) take a part out of its weights.
_LEAVE_BASE = (True, False, "gaussian", "orthogonal", "eva", None)


def base_of(model: str, *, key: str, **settings: Any) -> str | None:
    """The base model that the adapters in `model` name; None where `model` is no directory of adapters.

    Raises:
        UserError: for adapters that cannot be merged exactly, by their kind.
    """
    file = find_adapter_config_file(model, **settings)
    if file is None:
        return None
    try:
        config = read_json(Path(file))
    except RecordError as error:
        raise UserError(f"{key}={model!r}: {error}") from None
    base, kind, begun = config.get("base_model_name_or_path"), config.get("peft_type"), config.get("init_lora_weights")
    if not isinstance(base, str) or not base:
        raise UserError(f"{key}={model!r}: its adapter_config.json names no base model (base_model_name_or_path)")
    base = _placed(base, Path(model))
    reason = None
    if not _MERGED.fullmatch(str(kind)):
        reason = f"adapters of the kind {kind!r} are not part of a model's weights"
    elif begun not in _LEAVE_BASE:
        reason = f"init_lora_weights={begun!r} changed the base model"
    else:
        for name in ("megatron_config", "layer_replication", "alora_invocation_tokens"):
            if config.get(name):
                reason = f"{name} is set"
    if reason is not None:
        raise UserError(f"{key}={model!r}: its adapters cannot be merged ({reason}); merge them with peft yourself")
    return base


def _placed(base: str, adapters: Path) -> str:
    """The base of the adapters in a run's `checkpoints/final/adapter`, which name its directory without its place: the
    run's other checkpoints have that.
    """
    if Path(base).is_dir() or adapters.name != "adapter":
        return base
    for file in sorted(adapters.resolve().parents[1].glob("step_*/adapter_config.json"), reverse=True):
        with suppress(RecordError):
            place = read_json(file).get("base_model_name_or_path")
            if isinstance(place, str) and Path(place).name == base and Path(place).is_dir():
                return place
    return base


def merged(base: PreTrainedModel, adapters: str, *, key: str, **settings: Any) -> PreTrainedModel:
    """`base` with the adapters merged into its weights, checked against peft's own logits. Those of the hub are taken
    from its cache: peft would ask for another revision, and read a pickle where there are no safetensors.

    Raises:
        UserError: where they are not the base's, or do not merge exactly.
    """
    import peft

    folder = Path(adapters)
    if not folder.is_dir():
        names = ["adapter_config.json", _WEIGHTS]
        folder = Path(snapshot_download(adapters, allow_patterns=names, **settings))
    if not (folder / _WEIGHTS).is_file():
        raise UserError(f"{key}={adapters!r}: no model can be loaded: it has no {_WEIGHTS}")
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            model = peft.PeftModel.from_pretrained(base, str(folder))
        absent = [str(each.message) for each in warned if "missing adapter keys" in str(each.message)]
        ids = torch.arange(8, device=base.device)[None] % base.config.get_text_config().vocab_size
        with torch.inference_mode():
            expected = model.eval()(ids).logits
        plain: Any = model.merge_and_unload(safe_merge=True)
        with torch.inference_mode():
            ours = plain(ids).logits
    except Exception as error:  # peft raises many types of errors here; all mean the same to the user
        raise UserError(f"{key}={adapters!r}: its adapters cannot be loaded: {first_line(error)}") from error
    if absent:
        raise UserError(f"{key}={adapters!r}: some adapters have no weights: {absent[0].splitlines()[0][:200]}")
    rtol, atol = (1e-5, 1e-5) if ours.dtype == torch.float32 else (0.05, 0.1)
    if not torch.allclose(expected, ours, rtol=rtol, atol=atol):
        off = float((expected - ours).abs().max())
        raise UserError(f"{key}={adapters!r}: merged into the weights its adapters give other logits (by {off:.2g})")
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    return plain.requires_grad_(True)
