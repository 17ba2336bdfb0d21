"""What a teacher's engine can and cannot give: its settings, and the rules of `opd.check.refusals` on it."""

from dataclasses import asdict, replace
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import yaml

from opd.config.schema import CONF, RunConfig, Teacher, method_names
from opd.errors import UserError

# Ensembles whose likeliest tokens are one teacher's.
ONE_AT_A_TIME = ("single", "hard_switch")

# Engines with settings of their own, in `teacher.<engine>`.
WITH_SETTINGS = ("server", "vllm")


def with_own_settings(teacher: Teacher) -> Teacher:
    """The teacher with its engine's settings alone; those of other engines are null.

    Raises:
        UserError: the engine's own are missing, or another's were changed, which would do nothing.
    """
    for name in WITH_SETTINGS:
        settings = getattr(teacher, name)
        if name == teacher.engine:
            if settings is None:
                raise UserError(f"teacher.{name}: is null, and teacher.engine={name} needs it; leave it as it was")
        elif settings is not None and (changed := _changed(asdict(settings), _usual(name))):
            raise UserError(
                f"teacher.{name}.{changed} and teacher.engine: teacher.engine={teacher.engine} does not use it; set "
                f"teacher.engine={name}, or leave it out"
            )
    return replace(teacher, **{name: None for name in WITH_SETTINGS if name != teacher.engine})


@cache
def _usual(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / "teacher" / "base.yaml").read_text())[name]


def _changed(settings: dict[str, Any], usual: dict[str, Any]) -> str | None:
    return next((key for key, value in settings.items() if value != usual[key]), None)


# ---- rules: each returns what would be right, or None


def distributions(config: RunConfig) -> str | None:
    """Only the local engine has hidden states, from which whole distributions are made; vLLM names likeliest tokens."""
    if config.teacher.engine == "local":
        return None
    if config.method("support") == "full":
        return "set support=topk or sampled, or teacher.engine=local"
    if config.support.get("of", "teacher") != "teacher":
        return "set support.of=teacher, or teacher.engine=local"
    if config.method("support") == "topk" and config.method("ensemble") not in ONE_AT_A_TIME:
        return "set ensemble=single or hard_switch, support=sampled, or teacher.engine=local"
    if config.filter.get("score") == "exact_kl":
        return "set filter=kl, or teacher.engine=local"
    return None


def entropies(config: RunConfig) -> str | None:
    """Only the local engine has entropies."""
    if config.teacher.engine == "local":
        return None
    if config.filter.get("score") == "teacher_entropy":
        return "set filter=student_entropy or filter=kl, or teacher.engine=local"
    if "entropy_aware" in method_names(config.divergence):
        return "set another divergence, or teacher.engine=local"
    if config.ensemble.get("by") == "entropy":
        return "set ensemble.by=likelihood, or teacher.engine=local"
    return None


def temperature(config: RunConfig) -> str | None:
    """vLLM's `prompt_logprobs` are at temperature 1."""
    if config.teacher.engine == "local" or config.teacher.temperature == 1:
        return None
    return (
        f"set rollout.temperature=1.0, which teacher.temperature (now {config.teacher.temperature}) follows, or "
        "teacher.engine=local"
    )


def precision(config: RunConfig) -> str | None:
    """A server has loaded its model already; the anchor alone is loaded here."""
    if config.teacher.engine != "server" or config.teacher.dtype == "float32" or config.shaping.uses_anchor:
        return None
    return f"leave out teacher.dtype={config.teacher.dtype}, and give it to the server"


def eight_bits(config: RunConfig) -> str | None:
    """Only the local engine rounds weights itself."""
    if config.teacher.engine != "vllm" or config.teacher.dtype != "int8":
        return None
    return "set teacher.dtype=bfloat16, or teacher.engine=local"


def eight_bits_offloaded(config: RunConfig) -> str | None:
    """FSDP offloads what it shards, and it shards no integers."""
    if not config.compute.offload or config.teacher.dtype != "int8":
        return None
    return "set teacher.dtype=bfloat16, or compute.offload=false"


def urls(config: RunConfig) -> str | None:
    """As many servers as teachers, by URLs that hold no secret."""
    if config.teacher.server is None:
        return None
    given, num = config.teacher.server.urls, len(config.teacher.models)
    if len(given) != num:
        return f"teacher.server.urls has {len(given)} entries for {num} teachers; give [[URL]] or [[URL,URL],…]"
    for index, replicas in enumerate(given):
        if not all(_is_plain(url) for url in replicas):
            return (
                f"teacher.server.urls.{index} must be like [http://host:8000], without user, password or query; a key "
                "goes through teacher.server.api_key_env"
            )
        if len({url.rstrip("/").removesuffix("/v1") for url in replicas}) < len(replicas):
            return f"teacher.server.urls.{index} names a server twice"
    return None


def _is_plain(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    wanted = parts.scheme in ("http", "https") and parts.hostname and (port is None or port > 0)
    return bool(wanted) and not any((parts.username, parts.password, parts.query, parts.fragment)) and "@" not in url


def engine_memory(config: RunConfig) -> str | None:
    """vLLM takes one bound of memory."""
    settings = config.teacher.vllm
    if settings is None or (settings.kv_cache_bytes is None) != (settings.gpu_memory_utilization is None):
        return None
    return "give one of the two, and null for the other"
