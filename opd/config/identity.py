"""What makes a run the same run, through whatever later versions move, rename or add. Plain data: no schema here.

A run's hash is of its resolved config as that version would have written it in which each part of it first came. Three
tables tell what has changed since; whoever changes something adds a line, and none ever goes, so that a run of any
earlier version keeps its id, and its `config.yaml` is read as today's.

In a key `*` stands for any name, and `part:NAME` for `part` where its method, or its kind, is NAME: the last part of
its `_target_` at first, or its `kind`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# A method's import path when it first came → today's.
MOVED: dict[str, str] = {
    "opd.engine.rollout.TransformersSampler": "opd.rollout.sampler.TransformersSampler",
    "opd.engine.vllm.VllmSampler": "opd.rollout.vllm.VllmSampler",
}

# A key when it first came → today's. One that leaves its section has no `*` and no `:`.
RENAMED: dict[str, str] = {
    "entropy_coef": "signal.entropy",
    "shaping.kl_coef": "signal.near_start",
    "shaping.reward_weight": "signal.reward",
}

# A key that came after the first version, by its name when it came → its neutral value, at which it is not hashed and
# with which an older record is read: what a run did before there was such a key. Sections before what is in them.
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
}


def _one(weight: Any) -> Any:
    """A weight that is the same at the start and the end of training, as one number."""
    return weight[0] if isinstance(weight, list) and len(weight) == 2 and weight[0] == weight[1] else weight


def _pair(weight: Any) -> Any:
    return weight if isinstance(weight, list) else [weight, weight]


# A renamed key, by its first name, whose value is written in another form now: its first form, and today's.
REWRITTEN: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "entropy_coef": (_one, _one),
    "shaping.kl_coef": (_one, _one),
    "shaping.reward_weight": (_pair, _one),
}

# Keys that change where and how much of a run is kept, how it is observed, or which servers it asks, but no result.
NOT_HASHED = (
    "paths",
    "study",
    "tracker",
    "rollouts",
    "evaluate.texts",
    "profile",
    "seed",
    "teacher.server",
    "preflight",
    "plan",
    "plugins",
)


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 over the resolved config as sorted JSON, as it would have been at first, without `NOT_HASHED`."""
    return hashlib.sha256(json.dumps(as_first(_hashed(config)), sort_keys=True).encode()).hexdigest()


def run_id(config: Mapping[str, Any]) -> str:
    """`<name>-<8 hex of the config hash>-s<seed>`."""
    return f"{config['name']}-{config_hash(config)[:8]}-s{config['seed']}"


def is_hashed(key: str) -> bool:
    """Whether a dotted key is part of a run's identity."""
    return not any(key == name or key.startswith(name + ".") for name in NOT_HASHED)


def as_first(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of any version, whole or in part, as it would have been at first: what is hashed."""
    found = _named_as_first(config)
    for key, neutral in reversed(LATER.items()):
        *path, name = key.split(".")
        for section in _sections(found, path):
            if name in section and section[name] == neutral:
                del section[name]
    return found


def as_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of any version, whole or in part, as today's version writes it."""
    found = _named_as_first(config)
    for key, neutral in LATER.items():
        *path, name = key.split(".")
        for section in _sections(found, path):
            section.setdefault(name, _copied(neutral))
    for first, now in RENAMED.items():
        _rewrite(found, first, form=1)
        _rename(found, first, now)
    _retarget(found, MOVED)
    return found


def override_as_today(text: str) -> str:
    """An override with the keys, groups and import paths of an earlier version, with today's."""
    match = re.fullmatch(r"([+~]*)([^=@-][^=@]*)(@[^=]*)?(=?)(.*)", text, re.DOTALL)
    if match is None:
        return text
    mark, key, package, equals, value = match.groups(default="")
    for first, now in RENAMED.items():
        key = _renamed(key, first, now)
    if key.rpartition(".")[2] == "_target_":
        value = MOVED.get(value, value)
    return f"{mark}{key}{package}{equals}{value}"


def _hashed(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        key: _hashed(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in config.items()
        if is_hashed(prefix + key)
    }


def _named_as_first(config: Mapping[str, Any]) -> dict[str, Any]:
    found = _copied(config)
    _retarget(found, {now: first for first, now in MOVED.items()})
    for first, now in reversed(RENAMED.items()):
        _rename(found, now, first)
        _rewrite(found, first, form=0)
    return found


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _retarget(value: Any, paths: Mapping[str, str]) -> None:
    """Replaces the import paths of methods, in place."""
    if not paths:
        return
    if isinstance(value, dict):
        if isinstance(target := value.get("_target_"), str):
            value["_target_"] = paths.get(target, target)
        for inner in value.values():
            _retarget(inner, paths)
    elif isinstance(value, list):
        for inner in value:
            _retarget(inner, paths)


def _rename(config: dict[str, Any], old: str, new: str) -> None:
    """Moves what is under `old`, in place, unless something is under `new` already."""
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
    """Writes the value under a key's first name, in place, in its first form (0) or today's (1)."""
    if first in REWRITTEN:
        *path, name = first.split(".")
        for section in _sections(config, path):
            if name in section:
                section[name] = REWRITTEN[first][form](section[name])


def _renamed(key: str, first: str, now: str) -> str:
    """A dotted key with its first parts renamed where they are `first`."""
    given, old = key.split("."), first.split(".")
    if len(given) < len(old) or any(part not in ("*", own) for part, own in zip(old, given, strict=False)):
        return key
    new = [given[place] if part == "*" else part for place, part in enumerate(now.split("."))]
    return ".".join(new + given[len(old) :])


def _sections(config: Any, path: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The mappings at a path."""
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
