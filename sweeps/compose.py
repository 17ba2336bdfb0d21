"""Composing many configs fast: Hydra composes each choice of groups once, and values are set on copies of that."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opd import cli
from opd.config import plugins
from opd.config.composing import composing
from opd.config.schema import RunConfig
from opd.errors import UserError


class Composer:
    """Composes the config of `python -m opd.train <overrides>`, for many lists of overrides."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._composed: dict[tuple[str, ...], Any] = {}

    def config(self, overrides: Sequence[str]) -> RunConfig:
        """The checked config.

        Raises:
            UserError: for the first thing wrong with it.
        """
        with user_errors():
            return cli.prepared(self.composed(overrides))

    def composed(self, overrides: Sequence[str]) -> Any:
        """What Hydra composes, unresolved."""
        from hydra import compose

        parsed = parse_overrides(overrides)
        choices = tuple(text for text, override in zip(overrides, parsed, strict=True) if not _sets_value(override))
        if choices not in self._composed:
            self._composed[choices] = compose("config", overrides=[*choices, *plugins.overrides()])
        config = copy.deepcopy(self._composed[choices])
        self._loader._apply_overrides_to_config([override for override in parsed if _sets_value(override)], config)
        return config


@contextmanager
def composer() -> Iterator[Composer]:
    """A composer that works inside the block; a Hydra that runs this process is set aside meanwhile."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    cli.register_resolvers()
    with composing():
        yield Composer(ConfigLoaderImpl)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn Hydra's and OmegaConf's errors of composition into a `UserError` of one sentence."""
    try:
        yield
    except Exception as error:
        if sentence := cli.user_message(error):
            raise UserError(sentence) from None
        raise


def parse_overrides(overrides: Sequence[str]) -> list[Any]:
    """Overrides as Hydra parses them.

    Raises:
        UserError: for one that cannot be read, or whose choice leads out of `conf/`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, parsed = OverridesParser.create(), []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            override = None
        if override is None or not override.key_or_group:
            raise UserError(f"{text}: cannot be read; give KEY=VALUE, GROUP=NAME or +experiment=NAME")
        parsed.append(override)
    cli.refuse_outside(overrides)
    return parsed


def _sets_value(override: Any) -> bool:
    """Whether it only sets an existing value; Hydra applies these last too."""
    plain = not (override.is_add() or override.is_delete() or override.is_force_add())
    return plain and not override.package and not plugins.is_group(override.key_or_group)
