"""YAML as OmegaConf reads it, by libyaml's parser, which is ten times as fast; plain data, nothing resolved."""

from functools import lru_cache
from typing import Any

# Older libyaml does not limit how deep it recurses: what could be deeper than this is left to Python's parser.
MOST_BYTES, MOST_BRANCHES = 1 << 20, 5_000

MOST_VALUES = 100_000  # in a file with its aliases expanded


def load_yaml(text: str) -> Any:
    """The document in `text`: mappings, lists and JSON's scalars.

    Raises:
        ValueError: for aliases that expand to more than `MOST_VALUES` values, and for values of other types.
        yaml.YAMLError, RecursionError: for a text that is broken or too deep.
    """
    import yaml

    _refuse_endless(text)
    deep = len(text) > MOST_BYTES or sum(text.count(mark) for mark in "[{-?") > MOST_BRANCHES
    document = yaml.load(text, Loader=_loader(fast=not deep))
    _refuse_foreign(document)
    return document


@lru_cache
def _loader(*, fast: bool) -> Any:
    """OmegaConf's loader; `fast`: on libyaml's parser, where PyYAML was built with it."""
    import yaml
    from omegaconf._utils import get_yaml_loader
    from yaml.constructor import SafeConstructor
    from yaml.resolver import Resolver

    own = get_yaml_loader()
    if not (fast and yaml.__with_libyaml__):
        return own

    parser: Any = vars(yaml.cyaml)["CParser"]

    class Loader(parser, own):
        def __init__(self, stream: str):
            parser.__init__(self, stream)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

    return Loader


def _refuse_endless(text: str) -> None:
    """Refuse aliases that expand to more than `MOST_VALUES` values."""
    import yaml

    if "*" not in text:
        return
    sizes: dict[int, float] = {}

    def size(node: Any) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = float("inf")  # while it is counted: an alias of itself has no end
            parts = node.value if isinstance(node.value, list) else []
            sizes[id(node)] = 1.0 + sum(
                size(one) for part in parts for one in (part if type(part) is tuple else (part,))
            )
        return sizes[id(node)]

    if (root := yaml.compose(text, Loader=yaml.SafeLoader)) is not None and size(root) > MOST_VALUES:
        raise ValueError(f"expands to more than {MOST_VALUES} values")


def _refuse_foreign(value: Any) -> None:
    if isinstance(value, dict | list):
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            _refuse_foreign(part)
    elif type(value) not in (str, bool, int, float, type(None)):
        raise ValueError(f"contains a value of type {type(value).__name__}")
