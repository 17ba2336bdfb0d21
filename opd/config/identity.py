"""The identity of a run, kept through later moves, renames and additions. Plain data: no schema here.

A run's hash is that of its resolved config with each part as the version that introduced it wrote it. Four mappings
record what has changed since; a change adds a line and none is ever removed, so that a run of any earlier version keeps
its id and its `config.yaml` can be read.

In a key `*` matches any name, and `part:NAME` matches `part` where its method or kind is NAME: the last part of its
first `_target_`, or its `kind`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

# A method's first import path → today's.
MOVED: dict[str, str] = {
    "opd.engine.rollout.TransformersSampler": "opd.rollout.sampler.TransformersSampler",
    "opd.engine.vllm.VllmSampler": "opd.rollout.vllm.VllmSampler",
}

# A key's first name → today's. A key that leaves its section has no `*` and no `:`.
RENAMED: dict[str, str] = {
    "entropy_coef": "signal.entropy",
    "shaping.kl_coef": "signal.near_start",
    "shaping.reward_weight": "signal.reward",
}

# A key added after the first version, by its first name → its neutral value: what runs did before it was added. It is
# not hashed at this value, which older records get when read. Sections come before their keys.
LATER: dict[str, Any] = {
    "plugins": [],
    "signal": {"divergence": 1.0},
    "responses": {"_target_": "opd.rollout.responses.student"},
    "environment": {"_target_": "opd.data.environment.single_turn"},
    "context": {"_target_": "opd.teacher.context.same"},
    "alignment": {"_target_": "opd.teacher.alignment.identity"},
    "prompts.source:arithmetic.grader": "mathematics",
    "prompts.source:dataset.grader": "mathematics",
    "prompts.source:mixture.sources.*:arithmetic.grader": "mathematics",
    "prompts.source:mixture.sources.*:dataset.grader": "mathematics",
    "evaluate.sources.*:arithmetic.grader": "mathematics",
    "evaluate.sources.*:dataset.grader": "mathematics",
    "evaluate.texts": 0,
    "recipes.*.hints": 0.0,
    "prompts.date": None,
    "hub": {"push": None, "private": True},
    "prompts.source:dataset.problem": None,
    "prompts.source:mixture.sources.*:dataset.problem": None,
    "evaluate.sources.*:dataset.problem": None,
    "prompts.source:dataset.where": {},
    "prompts.source:mixture.sources.*:dataset.where": {},
    "evaluate.sources.*:dataset.where": {},
    "evaluate.batch_answers": None,
    "compute.attention": None,
    "student.vocab_size": None,
}


def _one(weight: Any) -> Any:
    """A constant weight as one number."""
    return weight[0] if isinstance(weight, list) and len(weight) == 2 and weight[0] == weight[1] else weight


def _pair(weight: Any) -> Any:
    return weight if isinstance(weight, list) else [weight, weight]


# A renamed key, by its first name, whose value has another form now: conversions to its first form and to today's.
REWRITTEN: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "entropy_coef": (_one, _one),
    "shaping.kl_coef": (_one, _one),
    "shaping.reward_weight": (_pair, _one),
}

# Keys that change where and how much of a run is saved, how it is observed, or which servers it uses, but no result.
NOT_HASHED = (
    "paths",
    "study",
    "tracker",
    "hub",
    "rollouts",
    "evaluate.texts",
    "evaluate.batch_answers",
    "profile",
    "seed",
    "teacher.server",
    "preflight",
    "plan",
    "plugins",
)


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 over the resolved config as sorted JSON in its first form, without `NOT_HASHED`."""
    return hashlib.sha256(json.dumps(as_first(hashed(config)), sort_keys=True).encode()).hexdigest()


def run_id(config: Mapping[str, Any]) -> str:
    """`<name>-<8 hex of the config hash>-s<seed>`."""
    return f"{config['name']}-{config_hash(config)[:8]}-s{config['seed']}"


def is_hashed(key: str) -> bool:
    """Whether a dotted key is part of a run's identity."""
    return not is_below(key, NOT_HASHED)


def is_below(key: str, sections: Iterable[str]) -> bool:
    """Whether a dotted key is one of `sections`, or in one."""
    return any(key == name or key.startswith(f"{name}.") for name in sections)


def as_first(config: Mapping[str, Any]) -> dict[str, Any]:
    """A full or partial config of any version in its first form, which is hashed."""
    first = _named_as_first(config)
    for key, neutral in reversed(LATER.items()):
        *path, name = key.split(".")
        for section in _sections(first, path):
            if name in section and section[name] == neutral:
                del section[name]
    return first


def as_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """A full or partial config of any version in today's form."""
    current = _named_as_first(config)
    for key, neutral in LATER.items():
        *path, name = key.split(".")
        for section in _sections(current, path):
            section.setdefault(name, _copied(neutral))
    for first, now in RENAMED.items():
        _rewrite(current, first, form=1)
        _rename(current, first, now)
    _retarget(current, MOVED)
    return current


def override_as_today(text: str) -> str:
    """An override of any version with today's keys, groups and import paths."""
    match = re.fullmatch(r"([+~]*)([^=@-][^=@]*)(@[^=]*)?(=?)(.*)", text, re.DOTALL)
    if match is None:
        return text
    mark, key, package, equals, value = match.groups(default="")
    for first, now in RENAMED.items():
        key = _renamed(key, first, now)
    if key.rpartition(".")[2] == "_target_":
        value = MOVED.get(value, value)
    return f"{mark}{key}{package}{equals}{value}"


def hashed(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The part of a config that is a run's identity."""
    return {
        key: hashed(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in config.items()
        if is_hashed(prefix + key)
    }


def _named_as_first(config: Mapping[str, Any]) -> dict[str, Any]:
    renamed = _copied(config)
    _retarget(renamed, {now: first for first, now in MOVED.items()})
    for first, now in reversed(RENAMED.items()):
        _rename(renamed, now, first)
        _rewrite(renamed, first, form=0)
    return renamed


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _retarget(value: Any, paths: Mapping[str, str]) -> None:
    """Replace the import paths of methods, in place."""
    if isinstance(value, dict):
        if isinstance(target := value.get("_target_"), str):
            value["_target_"] = paths.get(target, target)
        for inner in value.values():
            _retarget(inner, paths)
    elif isinstance(value, list):
        for inner in value:
            _retarget(inner, paths)


def _rename(config: dict[str, Any], old: str, new: str) -> None:
    """Move the value at `old` to `new`, in place, unless `new` exists."""
    *path, name = old.split(".")
    *new_path, new_name = new.split(".")
    for section in _sections(config, path):
        if name not in section:
            continue
        goal = section
        if new_path != path:
            goal = config
            for part in new_path:
                goal = goal.setdefault(part, {})
                if not isinstance(goal, dict):
                    return
        if new_name not in goal:
            goal[new_name] = section.pop(name)


def _rewrite(config: dict[str, Any], first: str, form: int) -> None:
    """Convert the value at a key's first name, in place, to its first form (0) or today's (1)."""
    if first in REWRITTEN:
        *path, name = first.split(".")
        for section in _sections(config, path):
            if name in section:
                section[name] = REWRITTEN[first][form](section[name])


def _renamed(key: str, first: str, now: str) -> str:
    """A dotted key with the prefix `first` replaced by `now`."""
    given, old = key.split("."), first.split(".")
    if len(given) < len(old) or any(part not in ("*", own) for part, own in zip(old, given, strict=False)):
        return key
    new = [given[place] if part == "*" else part for place, part in enumerate(now.split("."))]
    return ".".join(new + given[len(old) :])


def _sections(config: Any, path: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the mappings at a path."""
    if not isinstance(config, dict):
        return
    if not path:
        yield config
        return
    name, _, kind = path[0].partition(":")
    for inner in list(config.values()) if name == "*" else [config.get(name)]:
        if not kind or (isinstance(inner, dict) and kind in (inner.get("kind"), _method(inner))):
            yield from _sections(inner, path[1:])


def _method(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_")).rpartition(".")[2]
