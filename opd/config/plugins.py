"""Plug-ins: `plugins=[my_package]` on a command line makes a user's packages available to configs.

Their functions may then be a `_target_`, the files of their `conf/` are choices of the groups, and their terms are
terms of `signal`. Naming a package permits running its code, so only a command line can: a recorded config that needs
one is refused until the command line names it too. Nothing here imports torch.
"""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from opd.config.places import CONF
from opd.errors import UserError

KEY = "plugins"


@dataclass(frozen=True)
class Plugin:
    """A package: its folder, and the SHA-256 of its Python and YAML files, names included."""

    name: str
    folder: Path
    package: bool  # not a single module
    hash: str

    @property
    def conf(self) -> Path | None:
        """Its folder of configs, if it has one."""
        return self.folder / "conf" if self.package and (self.folder / "conf").is_dir() else None


_used: dict[str, Plugin] = {}


def without(words: Sequence[str]) -> list[str]:
    """The arguments of a command that do not name packages."""
    return [word for word in words if not _names_packages(word)]


def named(words: Sequence[str]) -> list[str]:
    """The packages that the arguments of a command name.

    Raises:
        UserError: for anything but a list of names.
    """
    given = [word.partition("=")[2] for word in words if _names_packages(word)]
    if not given:
        return []
    names = [name.strip() for name in re.sub(r"^\[(.*)\]$", r"\1", given[-1]).split(",") if name.strip()]
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
            raise UserError(f"{KEY}={given[-1]}: give names of packages, as {KEY}=[my_package]")
    return names


def use(names: Iterable[str]) -> None:
    """Make these packages available to the configs of this process.

    Raises:
        UserError: for one that cannot be found.
    """
    for name in names:
        if name not in _used:
            _used[name] = _find(name)


def used() -> dict[str, Plugin]:
    """The packages in use, by name."""
    return dict(_used)


def refuse_missing(names: Iterable[str], where: str) -> None:
    """Refuse a recorded config whose plug-ins are not in use; `where` names the config.

    Raises:
        UserError: with the argument to give.
    """
    wanted = list(names)
    if missing := [name for name in wanted if name not in _used]:
        raise UserError(
            f"{where}: needs the plug-in {missing[0]}, whose code runs only if the command line names it; "
            f"give {KEY}=[{','.join(wanted)}] too"
        )


def contains(target: str) -> bool:
    """Whether an import path is in a package in use."""
    return any(target.startswith(f"{name}.") for name in _used)


def conf_folders() -> list[Path]:
    """The folders of configs: ours, then the plug-ins'."""
    return [CONF, *(plugin.conf for plugin in _used.values() if plugin.conf is not None)]


def files(group: str) -> dict[str, Path]:
    """The choices of a config group, by name."""
    return {file.stem: file for folder in conf_folders() for file in sorted((folder / group).glob("*.yaml"))}


def is_group(name: str) -> bool:
    """Whether some folder of configs has this group."""
    return any((folder / name).is_dir() for folder in conf_folders())


def overrides() -> list[str]:
    """The overrides by which Hydra finds the plug-ins' folders of configs."""
    folders = [f"'file://{folder}'" for folder in conf_folders()[1:]]
    return [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []


def _names_packages(word: str) -> bool:
    return word.lstrip("+").partition("=")[0] == KEY


def _find(name: str) -> Plugin:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        raise UserError(
            f"{KEY}=[{name}]: there is no such package for {sys.executable}; install it there, or add its folder to "
            "PYTHONPATH"
        )
    if spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations)))
        content = sorted(file for suffix in ("*.py", "*.yaml") for file in folder.rglob(suffix))
    else:
        folder = Path(str(spec.origin)).parent
        content = [Path(str(spec.origin))]
    total = hashlib.sha256()
    for file in content:
        text = file.read_bytes()
        total.update(f"{file.relative_to(folder).as_posix()}\0{len(text)}\0".encode() + text)
    return Plugin(name, folder, bool(spec.submodule_search_locations), total.hexdigest())
