"""The argument `config=FILE`: a recorded config, which may come from anyone, read as data and checked against the
schema. Hydra gets its values and never reads the file: it would act on a `hydra` section, follow `defaults`, and
insert the environment variables that an interpolation names.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.config import plugins
from opd.config.parsing import check_partial, refuse_unresolved
from opd.config.places import CONF
from opd.errors import UserError
from opd.records.files import RecordError, read_config

_NAME = "recorded"  # of the values in Hydra's config store


def expand(given: Sequence[str]) -> list[str]:
    """A command's arguments, with `config=FILE` replaced by the arguments that make Hydra use that file's values.

    Raises:
        UserError: where `read` refuses the file, or it would send an environment variable to a server or a model to
            the hub.
    """
    rest = [argument for argument in given if not argument.startswith("config=")]
    files = [argument.removeprefix("config=") for argument in given if argument.startswith("config=")]
    if not files:
        return rest
    config = read(Path(files[-1]).expanduser())
    _refuse_to_send(config, files[-1], rest)
    _refuse_to_push(config, files[-1], rest)
    return [*store(config), *rest]


def read(file: Path) -> dict[str, Any]:
    """The values of a recorded config: some of the schema's keys or all of them, each of the right type.

    Raises:
        UserError: where the file is missing or damaged, or has an unknown key, an interpolation, or a value that is
            missing or of the wrong type.
    """
    if not file.exists():
        raise UserError(f"config={file}: there is no such file")
    try:
        config = read_config(file)
        for section in ("hydra", "defaults"):
            if section in config:
                raise UserError(f"{section}: is a section that Hydra would act on, and no run records it; remove it")
        check_partial(config)
    except RecordError as error:
        raise UserError(f"config={error}; give a run's config.yaml") from None
    except UserError as error:
        raise UserError(f"config={file}: {error}") from None
    return config


def store(config: Mapping[str, Any]) -> list[str]:
    """Puts a config into Hydra's store; returns the arguments that choose it as the whole config.

    Raises:
        UserError: for an interpolation or a missing value.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    refuse_unresolved(config)
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
    """The environment variable with the API key of the config's teacher servers; None without one."""
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
        *([] if (name := _pushed_to(config)) is None else [f"hub.push={name}"]),
    ]


def allowing(variable: str) -> str:
    """The argument that allows a recorded config to send this variable."""
    return f"teacher.server.api_key_env={variable}"


def _pushed_to(config: Mapping[str, Any]) -> str | None:
    hub = config.get("hub")
    return hub.get("push") if isinstance(hub, Mapping) else None


def _refuse_to_push(config: Mapping[str, Any], file: str, rest: Sequence[str]) -> None:
    """Refuses to push to a repository unless the command line names one, or none, too."""
    if (name := _pushed_to(config)) is None or any(text.lstrip("+").startswith("hub.push=") for text in rest):
        return
    raise UserError(
        f"config={file}: would push its model to {name}; give hub.push={name} to allow this, or hub.push=null"
    )


def _refuse_to_send(config: Mapping[str, Any], file: str, rest: Sequence[str]) -> None:
    """Refuses to send an environment variable to a server unless the command line names it too."""
    if (name := key_variable(config)) is None or any(text.lstrip("+").startswith(allowing("")) for text in rest):
        return
    urls = ", ".join(url for each in config["teacher"]["server"].get("urls", []) for url in each)
    raise UserError(
        f"config={file}: would send the environment variable {name} to {urls}; to allow this, also give "
        f"{allowing(name)}"
    )
