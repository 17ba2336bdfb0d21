"""Recorded configs, `config=FILE`, which may be anybody's: read as data and held against the schema before Hydra is
given the values. Hydra itself reads no such file: it would run what one says under `hydra`, follow its `defaults`, and
fill in the variables of the environment that it names.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.config import plugins
from opd.config.parsing import refuse_open, refuse_wrong
from opd.config.places import CONF
from opd.errors import UserError
from opd.records.run_dir import RecordError, read_config

_NAME = "recorded"  # what Hydra knows the values by


def arguments(given: Sequence[str]) -> list[str]:
    """A command's arguments, in which `config=FILE` has become Hydra's way to the values of that file.

    Raises:
        UserError: where `read` refuses the file, or it names an environment variable to send to a server.
    """
    rest = [argument for argument in given if not argument.startswith("config=")]
    files = [argument.removeprefix("config=") for argument in given if argument.startswith("config=")]
    if not files:
        return rest
    config = read(Path(files[-1]))
    _refuse_to_send(config, files[-1], rest)
    return [*composed_of(config), *rest]


def read(file: Path) -> dict[str, Any]:
    """The values of a recorded config, some of the schema's keys or all, each of its type.

    Raises:
        UserError: where there is no such file, it is none, or it has a key that a run does not have, an interpolation,
            or a value that is left open or wrong.
    """
    if not file.exists():
        raise UserError(f"config={file}: there is no such file")
    try:
        config = read_config(file)
        for section in ("hydra", "defaults"):
            if section in config:
                raise UserError(
                    f"{section}: is a section for Hydra, which would act on it; no run records one, remove it"
                )
        refuse_wrong(config)
    except RecordError as error:
        raise UserError(f"config={error}; give a run's config.yaml") from None
    except UserError as error:
        raise UserError(f"config={file}: {error}") from None
    return config


def composed_of(config: Mapping[str, Any]) -> list[str]:
    """Gives Hydra the values of a config as the whole of one; returns the arguments that choose it.

    Raises:
        UserError: where one is none.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    refuse_open(config)
    plugins.refuse_missing(config.get("plugins") or [], "this config")
    ours = OmegaConf.load(CONF / "config.yaml")
    node = {
        "defaults": ["_self_", {"override hydra/job_logging": "stdout"}],
        **config,
        "plugins": [],
        "hydra": ours.hydra,
    }
    ConfigStore.instance().store(_NAME, node)
    return ["--config-name", _NAME]


def key_variable(config: Mapping[str, Any]) -> str | None:
    """The environment variable whose value a config's teachers' servers are sent; null without one."""
    teacher = config.get("teacher")
    server = teacher.get("server") if isinstance(teacher, Mapping) else None
    name = server.get("api_key_env") if isinstance(server, Mapping) else None
    return None if name is None else str(name)


def confirmations(config: Mapping[str, Any]) -> list[str]:
    """The arguments beside `config=FILE` that confirm what a recorded config alone may not decide."""
    variable, packages = key_variable(config), config.get("plugins") or []
    return [
        *([] if variable is None else [allowing(variable)]),
        *([f"plugins=[{','.join(packages)}]"] if packages else []),
    ]


def allowing(variable: str) -> str:
    """The argument that lets a recorded config send it."""
    return f"teacher.server.api_key_env={variable}"


def _refuse_to_send(config: Mapping[str, Any], file: str, rest: Sequence[str]) -> None:
    """Holds that a variable of the environment goes to a server only where the command line names it too."""
    if (name := key_variable(config)) is None or any(text.lstrip("+").startswith(allowing("")) for text in rest):
        return
    urls = ", ".join(url for each in config["teacher"]["server"].get("urls", []) for url in each)
    raise UserError(
        f"config={file}: would send the environment variable {name} to {urls}; if it may, give {allowing(name)} too"
    )
