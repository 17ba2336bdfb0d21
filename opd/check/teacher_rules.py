"""Rules on teachers: what their engine can and cannot give, and its settings."""

from dataclasses import asdict, replace
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import yaml

from opd.check.engines import ENGINES, engine
from opd.check.rule import rule
from opd.check.signal import uses_anchor
from opd.config.schema import CONF, RunConfig, Teacher, method_names
from opd.errors import UserError

# Ensembles whose likeliest tokens are one teacher's.
ONE_AT_A_TIME = ("single", "hard_switch")


def with_own_settings(teacher: Teacher) -> Teacher:
    """The teacher with its engine's settings alone; those of other engines are null.

    Raises:
        UserError: the engine's own are missing, or another's were changed, which would do nothing.
    """
    others = [name for name, one in ENGINES.items() if one.settings and name != teacher.engine]
    if engine(teacher).settings and getattr(teacher, teacher.engine) is None:
        key = f"teacher.{teacher.engine}"
        raise UserError(f"{key}: is null, and teacher.engine={teacher.engine} needs it; leave it as it was")
    for name in others:
        settings = getattr(teacher, name)
        values = {} if settings is None else asdict(settings)
        if changed := [key for key, value in values.items() if value != _defaults(name)[key]]:
            raise UserError(
                f"teacher.{name}.{changed[0]} and teacher.engine: teacher.engine={teacher.engine} does not use it; set "
                f"teacher.engine={name}, or leave it out"
            )
    return replace(teacher, **dict.fromkeys(others))


@cache
def _defaults(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / "teacher" / "base.yaml").read_text())[name]


# ---- what the engine gives


@rule(
    "teacher.engine",
    "support",
    "ensemble",
    "filter",
    reason="this engine gives the log-probs of sampled tokens and of a teacher's likeliest, and no full distributions",
)
def distributions(config: RunConfig) -> str | None:
    if engine(config).distributions:
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


@rule(
    "teacher.engine",
    "filter",
    "divergence",
    "ensemble",
    reason="this engine gives the log-probs of the sampled tokens and no entropies",
)
def entropies(config: RunConfig) -> str | None:
    if engine(config).entropies:
        return None
    if config.filter.get("score") == "teacher_entropy":
        return "set filter=student_entropy or filter=kl, or teacher.engine=local"
    if "entropy_aware" in method_names(config.divergence):
        return "set another divergence, or teacher.engine=local"
    if config.ensemble.get("by") == "entropy":
        return "set ensemble.by=likelihood, or teacher.engine=local"
    return None


@rule(
    "teacher.engine",
    "teacher.temperature",
    reason="this engine gives the log-probs of given tokens at temperature 1",
)
def temperature(config: RunConfig) -> str | None:
    if engine(config).temperatures or config.teacher.temperature == 1:
        return None
    return (
        f"set rollout.temperature=1.0, which teacher.temperature (now {config.teacher.temperature}) follows, or "
        "teacher.engine=local"
    )


@rule("teacher.engine", "teacher.dtype", reason="a server has loaded its model already, in a precision of its own")
def precision(config: RunConfig) -> str | None:
    if engine(config).loads != "elsewhere" or config.teacher.dtype == "float32" or uses_anchor(config):
        return None  # the anchor is loaded here
    return f"leave out teacher.dtype={config.teacher.dtype}, and give it to the server"


@rule("teacher.engine", "teacher.dtype", reason="this engine loads 8-bit weights only from a checkpoint that has them")
def eight_bits(config: RunConfig) -> str | None:
    if engine(config).loads != "engine" or engine(config).rounds or config.teacher.dtype != "int8":
        return None
    return "set teacher.dtype=bfloat16, or teacher.engine=local"


@rule("teacher.dtype", "compute.offload", reason="8-bit weights stay on the device that computes with them")
def eight_bits_offloaded(config: RunConfig) -> str | None:
    # FSDP offloads what it shards, and it does not shard integers.
    if not config.compute.offload or config.teacher.dtype != "int8":
        return None
    return "set teacher.dtype=bfloat16, or compute.offload=false"


# ---- settings


@rule(
    "teacher.engine",
    "teacher.server.urls",
    reason="each teacher has servers of its own, whose URLs are recorded",
)
def urls(config: RunConfig) -> str | None:
    assert config.teacher.server is not None
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


@rule(
    "teacher.vllm.kv_cache_bytes",
    "teacher.vllm.gpu_memory_utilization",
    reason="an engine has one bound of its memory",
)
def engine_memory(config: RunConfig) -> str | None:
    settings = config.teacher.vllm
    assert settings is not None
    if (settings.kv_cache_bytes is None) != (settings.gpu_memory_utilization is None):
        return None
    return "give one of the two, and null for the other"
