"""Many configs fast: choices of groups are composed by Hydra once, values are set on copies of what it made."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opd import cli
from opd.check import config as check
from opd.config import plugins
from opd.config.schema import CONF, RunConfig
from opd.errors import UserError


class Composer:
    """`python -m opd.train <overrides>`'s checked config, for many lists of overrides."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._composed: dict[tuple[str, ...], Any] = {}

    def config(self, overrides: Sequence[str]) -> RunConfig:
        """The checked config.

        Raises:
            UserError: for the first thing wrong with it.
        """
        with in_sentences():
            return check.prepare(cli.resolved(self.composed(overrides)))

    def composed(self, overrides: Sequence[str]) -> Any:
        """What Hydra composes, unresolved."""
        from hydra import compose

        parsed = parse(overrides)
        choosing = tuple(text for text, override in zip(overrides, parsed, strict=True) if not _sets_value(override))
        if choosing not in self._composed:
            self._composed[choosing] = compose("config", overrides=[*choosing, *plugins.overrides()])
        config = copy.deepcopy(self._composed[choosing])
        self._loader._apply_overrides_to_config([override for override in parsed if _sets_value(override)], config)
        return config


@contextmanager
def composer() -> Iterator[Composer]:
    """A composer; composition works only inside the block, where a Hydra that runs us is set aside."""
    from hydra import initialize_config_dir
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.global_hydra import GlobalHydra

    cli.register_resolvers()
    around = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield Composer(ConfigLoaderImpl)
    finally:
        if around is not None:
            GlobalHydra.instance().initialize(around)


@contextmanager
def in_sentences() -> Iterator[None]:
    """What Hydra and OmegaConf say of a config that cannot be composed becomes a `UserError` of one sentence."""
    try:
        yield
    except Exception as error:
        if said := cli.mendable(error):
            raise UserError(said) from None
        raise


def parse(overrides: Sequence[str]) -> list[Any]:
    """Hydra's reading of overrides.

    Raises:
        UserError: for one that cannot be read, or whose choice is no file of `conf/`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, found = OverridesParser.create(), []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            override = None
        if override is None or not override.key_or_group:
            raise UserError(f"{text}: cannot be read; give KEY=VALUE, GROUP=NAME or +experiment=NAME")
        found.append(override)
    cli.refuse_outside(overrides)
    return found


def _sets_value(override: Any) -> bool:
    """Whether it only sets a value that is there already: such are applied last, by Hydra too."""
    plain = not (override.is_add() or override.is_delete() or override.is_force_add())
    return plain and not override.package and not plugins.is_group(override.key_or_group)
