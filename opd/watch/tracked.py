"""What every tracker is: told of a run's metrics as it records them."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from opd.check import config as check
from opd.config import identity, labels
from opd.config.composing import composing
from opd.config.flat import flat
from opd.config.places import CONF
from opd.config.schema import RunConfig


class Tracker:
    """Receives the lines of metrics.jsonl and the pages of rollouts; this one ignores them."""

    def begin(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Called once, before anything else: `lines` are all that the run has recorded up to where it begins or goes
        on. A tracker that may have been told of more, or of less, shows these instead.
        """

    def log(self, line: Mapping[str, Any]) -> None: ...

    def page(self, step: int, html: str) -> None: ...

    def finish(self, failed: bool) -> None: ...

    def abandon(self) -> None:
        """Called after a failure: nothing else will be called."""


def differs(config: RunConfig) -> str:
    """The keys that are not as the run's experiment, or without one the default, has them at its scale: by this,
    trackers tell runs of one name apart.
    """
    own, base = flat(check.as_dict(config)), flat(_as_named(config))
    unused = {key for key, value in own.items() if value is None and any(at.startswith(f"{key}.") for at in base)}
    return labels.text(labels.differences({key: own[key] for key in own.keys() - unused}, base))


def _as_named(config: RunConfig) -> dict[str, Any]:
    """The config that the run's name and scale alone give; empty where they give none."""
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    named = [f"+experiment={config.name}"] if (CONF / "experiment" / f"{config.name}.yaml").exists() else []
    try:
        with composing():
            composed = compose("config", overrides=[f"scale={config.scale.name}", *named])
        found: Any = OmegaConf.to_container(composed, resolve=True)
        return found
    except (HydraException, OmegaConfBaseException):  # a scale or an experiment of a plug-in, or of an earlier version
        return {}


def tracked_id(content: Mapping[str, Any]) -> str:
    """A run's id with trackers: a hash of its study and run id."""
    return hashlib.sha256(f"{content['study']}/{identity.run_id(content)}".encode()).hexdigest()[:16]


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line by name, without its step: for trackers that know no missing ones."""
    return {
        name: float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
