"""Where runs run: `conf/cluster`, checked against the settings of its executor."""

from collections.abc import Sequence
from typing import Any

from opd.check.credentials import refuse_credentials
from opd.config.places import CONF
from opd.errors import UserError
from sweeps import executor
from sweeps.compose import parse_overrides
from sweeps.executor import Settings
from sweeps.validation import validate


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command's arguments: those that choose and set the cluster, and the rest."""
    ours = [text for text in arguments if text.partition("=")[0].lstrip("+~").split(".")[0] == "cluster"]
    return ours, [text for text in arguments if text not in ours]


def load(arguments: Sequence[str]) -> Settings:
    """The settings that `cluster=NAME cluster.KEY=VALUE …` choose, those of `local` without any.

    Raises:
        UserError: for an unknown name or key, or a value of the wrong type or out of range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    given = {}
    for text, override in zip(arguments, parse_overrides(arguments), strict=True):
        if override.is_delete():
            raise UserError(f"{text}: a cluster's settings cannot be removed; give the key a value")
        if override.is_sweep_override():
            raise UserError(f"{text}: gives several values, but a submission goes to one cluster; give one")
        given[override.key_or_group] = override.value()
    name = given.pop("cluster", "local")
    known = sorted(file.stem for file in (CONF / "cluster").glob("*.yaml"))
    if name not in known:
        raise UserError(f"cluster={name}: there is no such cluster; conf/cluster has {', '.join(known)}")
    try:
        values = OmegaConf.load(CONF / "cluster" / f"{name}.yaml")
        for key, value in given.items():
            OmegaConf.update(values, key.removeprefix("cluster."), value, merge=True)
        return parse(OmegaConf.to_container(values, resolve=True), name)
    except YAMLError as error:
        raise UserError(f"cluster={name}: {name}.yaml cannot be read ({' '.join(str(error).split())})") from None
    except OmegaConfBaseException as error:
        raise UserError(f"cluster: {str(error).splitlines()[0]}") from None


def parse(values: Any, name: str) -> Settings:
    """Plain values → the settings of their `kind`; raises `UserError` with the key that is wrong."""
    scheduler = executor.get(values.get("kind") if isinstance(values, dict) else None)
    settings = validate(scheduler.settings, values, "cluster", f"cluster={name}")
    refuse_credentials({"cluster": values})
    scheduler.check(settings)
    return settings
