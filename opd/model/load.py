"""Loading causal language models and tokenizers from a directory or the Hugging Face Hub. Code that comes with a model
is never run, and weights are read from safetensors only: a pickle can run code when it is read.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging,
)

from opd.data import hub
from opd.errors import UserError, first_line
from opd.model import adapted, packed, whole
from opd.model.head import check_head
from opd.records.files import RecordError, read_json

# A progress bar for each file, most of which take milliseconds, would drown the run's own output.
logging.disable_progress_bar()


def load_tokenizer(model: str, *, revision: str | None, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `model`; `key` is the config key to name in an error.

    Raises:
        UserError: where it cannot be loaded, or has no end-of-text token.
    """
    _check_exists(model, key)
    try:
        with _quiet_hub():
            tokenizer = AutoTokenizer.from_pretrained(model, **settings(model, revision))
    except Exception as error:  # transformers raises many types of errors here; all mean the same to the user
        raise UserError(_cannot_load("tokenizer", model, key, error)) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{key}={model!r}: its tokenizer has no end-of-text token, so a response could never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: str, *, revision: str | None, dtype: str, key: str, implementation: str | None = None
) -> PreTrainedModel:
    """The causal language model `model` in `dtype`, in evaluation mode; `implementation` is that of attention, None:
    what transformers takes.

    Raises:
        UserError: where it cannot be loaded, or makes its logits in a way that is not known.
    """
    _check_exists(model, key)
    base = _base(model, revision, key)
    if base is not None:
        place = f"{key}={model!r}: its base"
        plain = load_model(base, revision=None, dtype=dtype, key=place, implementation=implementation)
        return adapted.merged(plain, model, key=key, **hub_settings(model, revision))
    loaded = _weights(model, revision, key, implementation, dtype=getattr(torch, dtype)).eval()
    if any(tensor.is_meta for tensor in loaded.parameters()):
        raise UserError(f"{key}={model!r}: some of its weights are missing")
    check_head(loaded, key=f"{key}={model!r}")
    packed.enable(loaded)
    return loaded


def check_weights(model: str, *, revision: str | None, key: str) -> PreTrainedModel:
    """Refuses a model whose weights are not those that its config asks for, without reading them: for an engine that
    loads them by itself, and draws at random what is missing. Returns it, on the device "meta".

    Raises:
        UserError: as `load_model`.
    """
    _check_exists(model, key)
    if _base(model, revision, key) is not None:
        raise UserError(f"{key}={model!r}: has adapters, which this engine does not load; give the merged model")
    return _weights(model, revision, key, None, device_map="meta")


def _weights(model: str, revision: str | None, key: str, implementation: str | None, **how: Any) -> PreTrainedModel:
    """The model as transformers loads it; every key of its config's model has a weight of its shape, and no other."""
    _refuse_kernels(model, revision, key)
    _refuse_outside(model, key)
    config = _full_config(model, revision, key)
    reader: Any = whole.reader(config)
    chosen = _attention(config, implementation, key=f"{key}={model!r}")
    try:
        with _quiet_hub():
            loaded, found = (reader or AutoModelForCausalLM).from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                model,
                attn_implementation=chosen,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name
                **how,
                **settings(model, revision),
            )
    except Exception as error:
        if implementation is not None and "attention" in str(error).lower():
            reason = f"{key}={model!r} cannot use it here ({first_line(error).rstrip('.')})"
            raise UserError(f"compute.attention={implementation}: {reason}; set compute.attention=null") from error
        raise UserError(_cannot_load("model", model, key, error)) from error
    others = whole.other_names(loaded) if reader is not None else set()
    surplus = [name for name in sorted(found["unexpected_keys"] - others) if not _HARMLESS.search(name)]
    shapes = sorted(name for name, *_ in found["mismatched_keys"])
    for names, wrong in ((sorted(found["missing_keys"]), "has no"), (shapes, "has another shape of"), (surplus, "has")):
        if names:
            more = f" and {len(names) - 1} others" if len(names) > 1 else ""
            instead = f", but {surplus[0]}" if surplus and names is not surplus else ""
            raise UserError(
                f"{key}={model!r}: its checkpoint {wrong} {names[0]}{more}{instead}, unlike the "
                f"{type(loaded).__name__} that its config.json names; save it again from the model that was trained"
            )
    return loaded if reader is None else whole.text_model(loaded, model, hub_settings(model, revision))


def attention(config: PreTrainedConfig) -> str | None:
    """The attention that computes what the config says: what transformers takes for the family (None: torch's where the
    family has it), but never torch's where there are soft caps, which it would ignore.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def _attention(config: PreTrainedConfig, wanted: str | None, *, key: str) -> str | None:
    """`wanted`, where it computes what the config says; None: what `attention` takes."""
    own = attention(config)
    if wanted == "sdpa" and own == "eager":
        raise UserError(f"compute.attention=sdpa: it ignores the soft caps of {key}; set compute.attention=eager")
    return wanted or own


# Weights that a family's checkpoints may have beside those that a language model computes with: buffers that are
# computed, and heads that guess further tokens.
_HARMLESS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|\.attention\.(masked_)?bias$|(^|\.)mtp\.")


def load_config(model: str, *, revision: str | None, key: str) -> PreTrainedConfig:
    """The config of `model` as `load_model` loads it, without its weights: of a multimodal one that of its text.

    Raises:
        UserError: where it cannot be loaded.
    """
    _check_exists(model, key)
    if (base := _base(model, revision, key)) is not None:
        return load_config(base, revision=None, key=f"{key}={model!r}: its base")
    _refuse_kernels(model, revision, key)
    return whole.text_config(_full_config(model, revision, key))


def _full_config(model: str, revision: str | None, key: str) -> PreTrainedConfig:
    try:
        with _quiet_hub():
            return AutoConfig.from_pretrained(model, **settings(model, revision))
    except Exception as error:
        raise UserError(_cannot_load("config", model, key, error)) from error


def load_ends(model: str, *, revision: str | None) -> list[int]:
    """The end-of-text tokens in the model's generation config; none where it has no such file.

    Raises:
        UserError: for a file that says what no generation can do.
    """
    try:
        with _quiet_hub():
            ends = GenerationConfig.from_pretrained(model, **settings(model, revision)).eos_token_id
    except OSError:
        return []
    except Exception as error:  # as in loading
        raise UserError(f"{model}: its generation_config.json cannot be used: {first_line(error)}") from error
    return [ends] if isinstance(ends, int) else list(ends or [])


def check_saving(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, key: str) -> None:
    """Tries to save everything of a model but its weights, so that no run fails at its first checkpoint.

    Mends what is known: sampling settings in a generation config that does not sample, which transformers loads with a
    warning and refuses to save.

    Raises:
        UserError: where it cannot be saved.
    """
    if (generation := model.generation_config) is not None and not generation.do_sample:
        try:
            generation.validate(strict=True)
        except ValueError:
            generation.do_sample = True  # what settings of sampling were meant for
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet_hub():
            for part in (model.config, model.generation_config, tokenizer):
                if part is not None:
                    part.save_pretrained(folder)
    except Exception as error:  # as in loading
        raise UserError(f"{key}: this model cannot be saved again: {first_line(error)}") from error


def end_with(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str] | None) -> None:
    """Makes these tokens end the responses of the model and its checkpoints; None leaves what its own config says.

    Raises:
        UserError: for a token that the tokenizer does not have.
    """
    if tokens is not None:
        assert model.generation_config is not None
        model.generation_config.eos_token_id = token_ids(tokenizer, tokens)


def token_ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """The ids of the student's stop tokens.

    Raises:
        UserError: for a token that the tokenizer does not have.
    """
    vocabulary = tokenizer.get_vocab()
    for token in tokens:
        if token not in vocabulary:
            raise UserError(f"student.stop_tokens: {token!r} is not a token of the student's vocabulary")
    return [vocabulary[token] for token in tokens]


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All tokens that end a response: the tokenizer's end-of-text token and those of the model's generation config."""
    more: Any = model.generation_config.eos_token_id if model.generation_config is not None else None
    end: Any = tokenizer.eos_token_id
    return tuple(sorted({end, *([more] if isinstance(more, int) else more or [])}))


def max_positions(config: PreTrainedConfig) -> int | None:
    """The number of positions of a model, None where its config does not say.

    A `rope_scaling` that stretches an original length has room for that length times its factor; configs differ in
    whether `max_position_embeddings` is the one or the other, so the larger counts.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 0:  # XLNet's -1: any number
        return None
    scaling = getattr(text, "rope_scaling", None) or getattr(text, "rope_parameters", None)
    kinds = [scaling, *scaling.values()] if isinstance(scaling, dict) else []  # of each kind of layer, in some families
    for kind in (each for each in kinds if isinstance(each, dict)):
        factor, original = kind.get("factor"), kind.get("original_max_position_embeddings")
        if isinstance(factor, int | float):
            positions = max(positions, int((original if isinstance(original, int) else positions) * factor))
    return positions


def same_vocabulary(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, *, key: str) -> None:
    """Checks that a teacher has the student's vocabulary.

    Raises:
        UserError: where it does not, naming the first token that differs.
    """
    if student is teacher:
        return
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    token = min(
        (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
        key=lambda token: (ours.get(token, theirs.get(token)), token),
    )
    raise UserError(
        f"{key}: its vocabulary is not the student's: token {token!r} has the id {ours.get(token)} in the student and "
        f"{theirs.get(token)} in the teacher; choose a teacher of the student's model family"
    )


def _check_exists(model: str, key: str) -> None:
    # A hub id is "owner/name" or "name"; anything else can only be a directory, so the hub need not be asked.
    if not Path(model).exists() and (model.startswith(("/", ".", "~")) or model.count("/") > 1):
        raise UserError(f"{key}={model!r}: there is no such directory")
    if Path(model).is_file():
        raise UserError(f"{key}={model!r}: is a file; give the directory that holds the model")


def _refuse_kernels(model: str, revision: str | None, key: str) -> None:
    """Refuses a config.json that names a hub repository as the implementation of a layer: transformers would run it."""
    try:
        with _quiet_hub():
            named, _ = PreTrainedConfig.get_config_dict(model, **settings(model, revision))
    except Exception as error:
        raise UserError(_cannot_load("config", model, key, error)) from error
    for name, value in _nested(named):
        if "implementation" in name and "/" in str(value):
            raise UserError(f"{key}={model!r}: its config.json names code to run ({name}={value!r}); remove that")


def _nested(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        yield str(name), value
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Mapping):
                yield from _nested(inner)


def _refuse_outside(model: str, key: str) -> None:
    """Refuses an index of weights that names files elsewhere."""
    for file in Path(model).glob("*.index.json") if Path(model).is_dir() else ():
        try:
            names = read_json(file).get("weight_map")
        except RecordError as error:
            raise UserError(f"{key}={model!r}: {error}") from None
        for name in set(map(str, names.values())) if isinstance(names, dict) else ():
            if Path(name).name != name:
                raise UserError(f"{key}={model!r}: {file.name} names {name!r}, which is not a file in that directory")


def _base(model: str, revision: str | None, key: str) -> str | None:
    """The base model, where `model` is a directory of adapters."""
    how = hub_settings(model, revision)
    try:
        with _quiet_hub():
            base = adapted.base_of(model, key=key, **how)
            if base is not None and adapted.base_of(base, key=key, local_files_only=how["local_files_only"]):
                raise UserError(f"{key}={model!r}: its base, {base}, has adapters too; merge those first")
            return base
    except OSError as error:
        raise UserError(_cannot_load("model", model, key, error)) from error


def settings(model: str, revision: str | None) -> dict[str, Any]:
    """What every call of transformers gets that may ask the hub."""
    # When the hub cannot be reached, what earlier runs left in its cache is used.
    offline = not Path(model).is_dir() and not hub.reachable()
    return {"revision": revision, "trust_remote_code": False, "local_files_only": offline}


def hub_settings(model: str, revision: str | None) -> dict[str, Any]:
    """Those of them that the hub's own client takes."""
    return {name: value for name, value in settings(model, revision).items() if name != "trust_remote_code"}


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Silences the hub client's warning at each retry and transformers' tables: our error message says it once."""
    loggers = [(each, each.level) for each in (getLogger("huggingface_hub"), getLogger("transformers"))]
    for logger, _ in loggers:
        logger.setLevel(ERROR)
    try:
        yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)


def _cannot_load(what: str, model: str, key: str, error: Exception) -> str:
    reason = first_line(error).rstrip(". :")
    if Path(model).is_dir():
        if what == "model" and [*Path(model).glob("*.bin")] and not [*Path(model).glob("*.safetensors")]:
            reason = "its weights are a pickle, which can run code; save them as safetensors"
        if what == "tokenizer" and not [*Path(model).glob("*token*"), *Path(model).glob("vocab*")]:
            reason = "it has no tokenizer.json"  # transformers says that in a whole paragraph
        return f"{key}={model!r}: no {what} can be loaded from this directory: {reason}"
    if not hub.reachable():
        return (
            f"{key}={model!r}: there is no such directory, the Hugging Face Hub cannot be reached, and its cache has "
            f"no {what} of that name; give a directory, or connect to the internet once"
        )
    return f"{key}={model!r}: there is no such directory, and no {what} of that name on the hub: {reason}"
