"""YAML as OmegaConf reads it, ten times as fast where nothing in it is OmegaConf's own."""

import re
from functools import lru_cache
from typing import Any

MOST_BYTES, MOST_BRANCHES, MOST_VALUES = 1 << 20, 5_000, 100_000

# A key, an item or both, with a word or some, a quoted text, nothing, or an empty list or mapping. In more than that
# libyaml and the parser that OmegaConf uses do not always agree.
_REST = r"[A-Za-z0-9_./+@%=()^-]*(?::[A-Za-z0-9_./+@%=()^-]+)*"
_VALUE = rf"(?:-?[A-Za-z0-9_./+]|~){_REST}(?: [A-Za-z0-9_./+@%=()^]{_REST})*|'[^'\\\n]*'|\[\]|\{{\}}"
_LINE = re.compile(rf" *(?:(?:- )+(?:[A-Za-z_][\w./-]*:(?: |$))?|[A-Za-z_][\w./-]*:(?: |$))(?:{_VALUE})?", re.A)


def read_plain(content: bytes) -> dict[str, Any] | None:
    """The mapping that `OmegaConf.to_container(OmegaConf.load(…))` gives; None where that one is to be asked.

    None where the content is not as OmegaConf writes it, is broken, huge or deep, or holds an interpolation, a missing
    value or a type other than JSON's.
    """
    import yaml

    # libyaml's binding has no check of its own for how deep it goes.
    if len(content) > MOST_BYTES or sum(content.count(mark) for mark in (b"[", b"{", b"-", b"?")) > MOST_BRANCHES:
        return None
    try:
        text = content.decode("ascii")
        if not all(map(_LINE.fullmatch, text.splitlines())):
            return None
        found = yaml.load(text, Loader=_loader())
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) and _is_plain(found) else None


@lru_cache(maxsize=1)
def _loader() -> Any:
    """OmegaConf's loader on libyaml's parser, or on Python's where PyYAML was built without that."""
    import yaml
    from omegaconf._utils import get_yaml_loader
    from yaml.constructor import SafeConstructor
    from yaml.resolver import Resolver

    own = get_yaml_loader()
    if not yaml.__with_libyaml__:
        return own

    parser: Any = vars(yaml.cyaml)["CParser"]

    class Loader(parser, own):
        def __init__(self, stream: str):
            parser.__init__(self, stream)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

    return Loader


def refuse_endless(text: str) -> None:
    """Raises ValueError where YAML unfolds to more than `MOST_VALUES`, as a few lines can that name each other."""
    import yaml

    if "*" not in text:
        return
    sizes: dict[int, float] = {}

    def size(node: Any) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = float("inf")  # while it is counted: one that holds itself never ends
            parts = node.value if isinstance(node.value, list) else []
            sizes[id(node)] = 1.0 + sum(
                size(one) for part in parts for one in (part if type(part) is tuple else (part,))
            )
        return sizes[id(node)]

    if (root := yaml.compose(text, Loader=yaml.SafeLoader)) is not None and size(root) > MOST_VALUES:
        raise ValueError(f"unfolds to more than {MOST_VALUES} values")


def _is_plain(found: dict[Any, Any]) -> bool:
    left: list[Any] = [found]
    while left:
        part = left.pop()
        if isinstance(part, dict) and not all(type(key) is str for key in part):
            return False
        for value in part.values() if isinstance(part, dict) else part:
            if isinstance(value, dict | list):
                left.append(value)
            elif isinstance(value, str):
                if "${" in value or value == "???":
                    return False
            elif type(value) not in (bool, int, float, type(None)):
                return False
    return True
