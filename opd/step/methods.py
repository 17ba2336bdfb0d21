"""From a method's node of the config to its function."""

from functools import partial
from typing import Any

from opd.check.config import COMMON_KNOBS, resolve
from opd.config.schema import Node, RunConfig
from opd.objective.mixture import BoundEnsemble


def bind(group: str, node: Node) -> partial[Any]:
    """The function that a method node names, with its knobs filled in; a knob may itself be a node of the group.

    Knobs that the run itself reads are left out.
    """
    knobs = {
        key: bind(group, value)() if isinstance(value, dict) and "_target_" in value else value
        for key, value in node.items()
        if key not in ("_target_", "_partial_") and key not in COMMON_KNOBS.get(group, {})
    }
    return partial(resolve(group, node["_target_"]), **knobs)


def bound_ensemble(config: RunConfig) -> BoundEnsemble:
    """The ensemble of the run's teachers."""
    ensemble: Any = bind("ensemble", config.ensemble)
    return BoundEnsemble(ensemble.func, len(config.teacher.models), ensemble.keywords)
