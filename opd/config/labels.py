"""What a run is called where it is shown: its name and, where others share that, the keys in which it differs."""

from collections import Counter
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from typing import Any

from opd.config.identity import is_below, is_hashed
from opd.printable import printable

# Keys that name a run, or follow from the choice of a world and its models.
_ASIDE = ("name", "recipes", "evaluate.sources")
_SCALE = "scale.name"
_MOST = 3  # differences in a label; the others are counted

Flat = Mapping[str, Any]


def labels(configs: Mapping[str, Flat], base: str | None = None) -> dict[str, str]:
    """Id → name, followed where several ids have that name by what tells their configs apart: `default gamma=0.5`.

    `configs` are id → config by dotted key (`flat.flat`) with a `name`, no two with the same hash. Differences are
    those from the config with id `base`, where that is of the name, or else from what most configs of the name have in
    common. A label has at most three, `default gamma=0.5 epochs=2 credit=sequence +2`, and more where it needs them to
    be unique.
    """
    found: dict[str, str] = {}
    by_name: dict[str, list[str]] = {}
    for each, config in configs.items():
        by_name.setdefault(str(config["name"]), []).append(each)
    for name, ids in by_name.items():
        own = {each: configs[each] for each in ids}
        found |= {ids[0]: name} if len(ids) == 1 else _told_apart(name, own, own.get(base or ""))
    return {each: found[each] for each in configs}


def differences(own: Flat, base: Flat) -> dict[str, str]:
    """The keys whose values in `own` differ from `base`, or are missing there, and their values as one types them:
    `{"divergence": "alpha_divergence", "divergence.alpha": "0.5"}`. A method is called by its name; of equal values
    under one last name, as `rollout.temperature` and `teacher.temperature`, the shortest key stands for all.
    """
    shown: dict[str, str] = {}
    last: dict[tuple[str, str], str] = {}
    for key, value in sorted(own.items()):  # an export of a study keeps no other order
        if not is_hashed(key) or is_below(key, _ASIDE) or (key in base and _same(base[key], value)):
            continue
        method_key = f"{key.rpartition('.')[0]}._target_"
        if value is None and method_key in own and not _same(base.get(method_key), own[method_key]):
            continue  # a knob that the other method does not use
        name = "scale" if key == _SCALE else key.removesuffix("._target_")
        text = str(value).rpartition(".")[2] if key.endswith("._target_") else _text(value)
        other = last.setdefault((name.rpartition(".")[2], text), name)
        if other == name or len(name) < len(other):
            shown.pop(other, None)
            last[name.rpartition(".")[2], text] = name
            shown[name] = text
    return dict(sorted(shown.items(), key=lambda item: item[0] != "scale"))


def text(shown: Mapping[str, str]) -> str:
    """`differences` in one line."""
    return " ".join(f"{key}={value}" if value else key for key, value in shown.items())


def _told_apart(name: str, configs: Mapping[str, Flat], base: Flat | None) -> dict[str, str]:
    """Id → the shortest of its labels that no other has; the id where there is none."""
    reference = common(configs.values()) if base is None else base
    every = {each: _differences(config, reference, configs.values()) for each, config in configs.items()}
    vary = varying(configs.values())
    brief = {each: telling(own, reference, vary) for each, own in every.items()}
    found = dict(zip(configs, configs, strict=True))
    for candidates in (every, brief, {each: _first(own) for each, own in brief.items()}):
        shown = {each: f"{name} {text(own)}".rstrip() for each, own in candidates.items()}
        count = Counter(shown.values())
        found |= {each: label for each, label in shown.items() if count[label] == 1}
    return found


def _differences(own: Flat, reference: Flat, configs: Iterable[Flat]) -> dict[str, str]:
    """`differences`; of a config of another scale, whose keys nearly all differ, those from the others of its scale."""
    if _same(own.get(_SCALE), reference.get(_SCALE)) or _SCALE not in reference:
        return differences(own, reference)
    alike = [config for config in configs if _same(config.get(_SCALE), own.get(_SCALE))]
    return {"scale": str(own.get(_SCALE))} | differences(own, common(alike) if alike[1:] else own)


def _first(shown: Mapping[str, str]) -> dict[str, str]:
    more = len(shown) - _MOST
    return dict(list(shown.items())[:_MOST]) | ({f"+{more}": ""} if more > 0 else {})


def varying(configs: Iterable[Flat]) -> set[str]:
    """The keys, a method's without its `_target_`, that have several values among the configs that have them."""
    values: dict[str, set[Hashable]] = {}
    for config in configs:
        for key, value in config.items():
            values.setdefault(key.removesuffix("._target_"), set()).add(_frozen(value))
    return {key for key, found in values.items() if len(found) > 1}


def telling(every: Mapping[str, str], reference: Flat, vary: Container[str]) -> dict[str, str]:
    """`differences` from `reference`, without the knobs that came along with a method or a section and do not `vary`
    among the configs that have it (`varying`).
    """
    told: dict[str, str] = {}
    for key, value in every.items():
        is_new = key not in reference and f"{key}._target_" not in reference
        sections = {other.rpartition(".")[0] or other for other in told} | told.keys()
        if key in vary or not (is_new and is_below(key, sections)):
            told[key] = value
    return told


def common(configs: Iterable[Flat]) -> dict[str, Any]:
    """The value of each key that more than half of the configs have."""
    each: Sequence[Flat] = list(configs)
    shared = {}
    for key in dict.fromkeys(key for config in each for key in config):
        (value, count), *_ = Counter(_frozen(config.get(key, _ABSENT)) for config in each).most_common(1)
        if 2 * count > len(each) and value != _frozen(_ABSENT):
            shared[key] = next(config[key] for config in each if key in config and _frozen(config[key]) == value)
    return shared


_ABSENT = object()


def _frozen(value: Any) -> Hashable:
    """Equal for equal values; 1 is 1.0, but not true."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return repr(value)
    return float(value)


def _same(one: Any, other: Any) -> bool:
    return _frozen(one) == _frozen(other)


def _text(value: Any) -> str:
    """A value as one types it, but a path or a model by its last name."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return f"[{','.join(_text(item) for item in value)}]"
    return printable(str(value).rstrip("/").rpartition("/")[2], limit=40)
