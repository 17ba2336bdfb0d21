"""What an unknown key was probably meant to be."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import yaml

from opd.config import plugins
from opd.config.identity import override_as_today
from opd.config.schema import RunConfig
from opd.errors import UserError

# What other trainers call a key, or people do → ours. Sections are left out of the given key first, if need be.
ALIASES = {
    **dict.fromkeys(("lr", "learning_rate", "max_lr"), "optim.lr"),
    **dict.fromkeys(("warmup", "warmup_steps", "lr_warmup_steps"), "optim.warmup_steps"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler"), "optim.schedule"),
    **dict.fromkeys(("max_grad_norm", "grad_clip", "clip_grad", "gradient_clipping"), "optim.grad_clip"),
    **dict.fromkeys(("weight_decay", "wd"), "optim.weight_decay"),
    **dict.fromkeys(("model", "student", "policy", "actor", "model_name_or_path", "model_path"), "student.model"),
    **dict.fromkeys(("teacher_model", "teacher_model_name_or_path", "teacher_path", "ref_model"), "teacher.models"),
    **dict.fromkeys(("max_steps", "total_steps", "train_steps", "steps"), "num_steps"),
    **dict.fromkeys(("num_epochs", "num_train_epochs", "total_epochs"), "epochs"),
    **dict.fromkeys(("train_batch_size", "bs", "num_prompts", "global_batch_size"), "batch_size"),
    **dict.fromkeys(("ppo_mini_batch_size", "minibatch_size"), "mini_batch_size"),
    **dict.fromkeys(("group_size", "num_generations", "n", "num_samples", "rollout_n"), "samples_per_prompt"),
    **dict.fromkeys(
        ("max_tokens", "max_new_tokens", "max_completion_length", "response_length"), "max_response_length"
    ),
    **dict.fromkeys(("max_prompt_len", "max_prompt_length", "prompt_length"), "prompts.max_prompt_length"),
    **dict.fromkeys(("temperature", "temp"), "rollout.temperature"),
    **dict.fromkeys(("dataset", "train_file", "data", "train_files"), "prompts.source.file"),
    **dict.fromkeys(("system_prompt", "system"), "prompts.system"),
    **dict.fromkeys(("output_dir", "out", "output", "save_dir"), "paths.outputs"),
    **dict.fromkeys(("run_name", "exp_name", "experiment_name"), "name"),
    **dict.fromkeys(("lora_r", "lora_rank"), "student.lora.rank"),
    **dict.fromkeys(("lora_alpha",), "student.lora.alpha"),
    **dict.fromkeys(("save_steps", "save_freq", "save_every"), "checkpoint.every"),
    **dict.fromkeys(("eval_steps", "eval_every", "test_freq"), "evaluate.every"),
    **dict.fromkeys(("gradient_checkpointing", "activation_checkpointing"), "compute.activation_checkpointing"),
    **dict.fromkeys(("bf16", "precision", "mixed_precision", "torch_dtype"), "compute.dtype"),
    **dict.fromkeys(("kl_coef", "beta", "kl_penalty"), "signal.near_start"),
    **dict.fromkeys(("entropy_bonus", "entropy_coeff"), "signal.entropy"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(("num_threads", "torch_threads"), "threads"),
    **dict.fromkeys(("wandb", "logger", "report_to", "use_wandb"), "tracker=wandb"),
    **dict.fromkeys(("use_lora", "use_peft"), "lora=all_linear"),
}

# Folders of `conf/` whose files are no choices that give a run a key.
_NO_CHOICES = ("hydra", "experiment", "sweep", "scale", "cluster", "benchmark", "recipe")


def no_such_key(key: str) -> str:
    """The sentence for an unknown key: its name today, the choice that has it, a common alias, or the nearest key."""
    start = f"{key}: there is no such key"
    if (now := override_as_today(key)) != key:
        return f"{start}; it is now {now}"
    if choices := list(dict.fromkeys(_choices_with(key))):
        has = "has it" if len(choices) == 1 else "have it"
        return f"{start} with this choice; {' and '.join(filter(None, [', '.join(choices[:-1]), choices[-1]]))} {has}"
    if meant := meant_by(key):
        return f"{start}; did you mean {meant}?"
    return start


def meant_by(key: str) -> str | None:
    """A key, or a choice of a group, that is probably meant."""
    if alias := ALIASES.get(key) or (ALIASES.get(key.rpartition(".")[2]) if "." in key else None):
        return alias if alias != key else None
    every = [known for known in [*known_keys(), *_knobs()] if known != key]
    ends = [known for known in every if known.endswith(f".{key}") and not known.startswith("scale.")]
    if "." not in key and 1 <= len(ends) <= 3:
        return " or ".join(dict.fromkeys(ends))
    return next(iter(difflib.get_close_matches(key, every, n=1, cutoff=0.6)), None)


def known_keys(kind: Any = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the schema."""
    keys = []
    for entry in fields(kind):
        keys.append(prefix + entry.name)
        for inner in get_args(entry.type) if isinstance(entry.type, UnionType) else (entry.type,):
            keys += known_keys(inner, f"{prefix}{entry.name}.") if is_dataclass(inner) else []
    return keys


def _choices_with(key: str) -> Iterator[str]:
    """The choices GROUP=NAME whose file sets this key."""
    for folder in plugins.conf_folders():
        for file in sorted(folder.glob("*/*.yaml")):
            group = file.parent.name
            if group not in _NO_CHOICES and key in _keys_of(file, group):
                yield f"{group}={file.stem}"


def _knobs() -> list[str]:
    """The keys that files of the groups set."""
    files = [file for folder in plugins.conf_folders() for file in sorted(folder.glob("*/*.yaml"))]
    return [key for file in files if file.parent.name not in _NO_CHOICES for key in _keys_of(file, file.parent.name)]


def _keys_of(file: Path, group: str) -> list[str]:
    text = file.read_text(encoding="utf-8")
    header = text.partition("\n")[0]
    package = header.removeprefix("# @package").strip() if header.startswith("# @package") else group
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is not YAML") from error
    return [f"{package}.{key}" for key in _flat(content) if not key.startswith("_")] if package != "_global_" else []


def _flat(content: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield f"{prefix}{key}"
            yield from _flat(value, f"{prefix}{key}.")
