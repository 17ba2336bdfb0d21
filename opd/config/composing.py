"""Composing a config in a process that Hydra may be running."""

from collections.abc import Iterator
from contextlib import contextmanager

from opd.config.places import CONF


@contextmanager
def composing() -> Iterator[None]:
    """Within the block Hydra composes from `conf/`; one that runs this process is set aside meanwhile."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        if outer is not None:
            GlobalHydra.instance().initialize(outer)
