"""What the commands share: composing the config, and reporting an error in one sentence."""

import copy
import difflib
import errno
import functools
import os
import re
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from opd import command_help
from opd.check import config as check
from opd.config import plugins, sources, words
from opd.config.hints import no_such_key
from opd.config.identity import override_as_today
from opd.config.places import CONF, ROOT
from opd.config.schema import RunConfig
from opd.config.words import key_of
from opd.errors import UserError, first_line
from opd.interrupts import INTERRUPTED, interruptible
from opd.printable import lasting_output, printable_text


def register_resolvers() -> None:
    """Register the functions that a config may call.

    `${times:a,b}`: the product to 12 digits, so that a tenth of 1e-5 is 1e-6; an integer where `b` and the product are.
    `${first:a,b}`: `a`, or `b` where `a` is null.   `${last:a}`: the last of a list, null for an empty one.
    """
    from omegaconf import OmegaConf

    def times(a: float | int, b: float | int) -> float | int:
        product = float(f"{a * b:.12g}")
        return int(product) if isinstance(b, int) and product.is_integer() else product

    OmegaConf.register_new_resolver("times", times, replace=True)
    OmegaConf.register_new_resolver("first", lambda a, b: b if a is None else a, replace=True)
    OmegaConf.register_new_resolver("last", lambda a: a[-1] if a else None, replace=True)


def resolved(config: Any) -> dict[str, Any]:
    """A composed config as plain data, without its `sweep` section; its benchmarks have whole sources.

    Raises:
        UserError: for a missing value or a broken interpolation, or a benchmark without a source.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

    register_resolvers()  # a process of Hydra's launcher has not registered them
    config = copy.deepcopy(config)
    sources.complete(config)
    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        missing = error.full_key
        with suppress(OmegaConfBaseException):  # another interpolation may be broken
            missing = min(OmegaConf.missing_keys(config))
        raise UserError(f"{missing}: has no value; give it one, as {missing}=VALUE") from None
    except InterpolationKeyError as error:
        raise UserError(_broken(error, config)) from None
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from None
    values.pop("sweep", None)
    sources.with_later_keys(values)
    return values


def _broken(error: Any, config: Any) -> str:
    """The sentence for a value that follows another one which this config does not have."""
    wanted = re.search(r"Interpolation key '([^']+)' not found", str(error))
    if wanted is None:
        return f"{error.full_key}: {first_line(error)}"
    scale, recipe = config.get("scale", {}).get("name"), re.match(r"recipes\.(\w+)", wanted[1])
    here = f"{error.full_key}: follows {wanted[1]}, which scale={scale} does not have"
    if recipe and (group := next(iter(_recipes(recipe[1])), None)):
        return f"{here}; give {error.full_key} a value, or add +{group}@recipes.{recipe[1]}={recipe[1]}"
    return f"{here}; give {error.full_key} a value"


def _recipes(name: str) -> list[str]:
    """The groups that have a recipe of this name."""
    return [file.parent.relative_to(CONF).as_posix() for file in sorted((CONF / "recipe").rglob(f"{name}.yaml"))]


def prepared(composed: Any, *, trains: bool = True) -> RunConfig:
    """A composed config, checked (`opd.check.config.prepare`); a value that another key gave is refused by that key."""
    try:
        return check.prepare(resolved(composed), trains=trains)
    except UserError as error:
        raise UserError(_blamed(str(error), composed)) from None


def _blamed(sentence: str, composed: Any) -> str:
    """A sentence on KEY=VALUE, of the key that KEY's value comes from."""
    from omegaconf import OmegaConf

    key, equals, rest = sentence.partition("=")
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    while equals and (found := re.fullmatch(r"\$\{([\w.]+)\}", str(_at(raw, key)))):
        key = found[1]
    return f"{key}{equals}{rest}"


def _at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def main(
    command: Callable[[], None],
    arguments: Callable[[list[str]], list[str]] = list,
    *,
    about: str | None = None,
    groups: tuple[str, ...] | None = None,
) -> None:
    """Run a Hydra command on its arguments as `arguments` rewrites them; for `--help` print what it is `about`, and the
    choices of `groups`, or of all.

    An error that the user can fix becomes one sentence on stderr and exit status 2, without a traceback.
    """
    from hydra._internal.utils import get_args_parser

    # Hydra's own reporting drops the cause and exits 1; with this it raises its exceptions.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_resolvers()
    leave_working_folder_out()
    try:
        current = [override_as_today(text) for text in sys.argv[1:]]
        given = get_args_parser().parse_known_args(current)[0]
        plugins.use(plugins.named(current))
        _refuse_other_configs(given)
        if given.help:
            return print(command_help.text(about or "", groups))
        _refuse_sweeps(given)
        rewritten = arguments(current)
        typed = get_args_parser().parse_known_args(rewritten)[0].overrides
        read = dict(zip(typed, words.as_read(typed, multirun=given.multirun), strict=True))
        sys.argv[1:] = [*(read.get(word, word) for word in rewritten), *plugins.overrides()]
        command()
    except KeyboardInterrupt as error:
        _stop(str(error) or "interrupted; the same command begins again", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # writing the rest would fail too
        sys.exit(141)
    except Exception as error:
        if (sentence := user_message(error)) is None:
            raise
        _stop(sentence)


def leave_working_folder_out() -> None:
    """Remove the working folder, which `python -m` puts first, from the import path, unless it is the checkout: Hydra
    imports every plugin under `hydra_plugins` there, and the folder may contain somebody else's runs.
    """
    if not sys.flags.safe_path and sys.path and Path(sys.path[0]) == Path.cwd() != ROOT:
        del sys.path[0]


def _refuse_other_configs(given: Namespace) -> None:
    """Refuse Hydra's options to read other files: it runs what their `hydra` section names."""
    flags = {"--config-dir": given.config_dir, "--config-path": given.config_path, "--config-name": given.config_name}
    named = [flag for flag, value in flags.items() if value is not None]
    named += [text for text in given.overrides if key_of(text) == "hydra.searchpath"]
    if named:
        raise UserError(
            f"{named[0]}: configs are read only from conf/; put the file into {CONF}, or repeat a recorded run with "
            "config=FILE"
        )
    refuse_outside(given.overrides)


def _refuse_sweeps(given: Namespace) -> None:
    """Refuse a sweep where one run is made."""
    named = [text for text in given.overrides if key_of(text).partition(".")[0] == "sweep"]
    if named and not given.multirun:
        raise UserError(
            f"{named[0]}: names several runs; submit them with python -m sweeps.submit {named[0]}, or give -m too"
        )


def refuse_outside(overrides: Sequence[str]) -> None:
    """Raise `UserError` for a group choice that is not a file of `conf/`."""
    for text in overrides:
        group = key_of(text)
        if ".." in text.partition("=")[2] and (group.startswith("hydra/") or plugins.is_group(group)):
            raise UserError(f"{text}: is outside conf/{group}; {choices(group, text.rpartition('/')[2])}")


def job(task: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap a Hydra task so that a `UserError` ends a single run with one sentence; a multirun continues. A task goes on
    where nobody reads its output any more.
    """

    @functools.wraps(task)
    def run(composed: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        try:
            plugins.use(composed.get("plugins") or [])  # a process of Hydra's launcher has seen no command line
            with lasting_output(), interruptible():
                task(composed)
        except Exception as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN or (sentence := user_message(error)) is None:
                raise
            _stop(sentence)

    return run


def user_message(error: Exception) -> str | None:
    """The sentence for an error that the user can fix; None for any other."""
    from opd.records.files import RecordError

    if isinstance(error, RecordError):
        return f"{error}; restore that record or move it away"
    return str(error) if isinstance(error, UserError) else composition_sentence(error) or disk_sentence(error)


def disk_sentence(error: BaseException) -> str | None:
    """The sentence for a disk that is full, failing or not writable; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _DISK:
        return None
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{where}: {_DISK[error.errno]}"


_DISK = {
    errno.ENOSPC: "free some space, then rerun the same command to resume from the last checkpoint",
    errno.EDQUOT: "the disk quota is exhausted; free some space, then rerun the same command to resume",
    errno.EACCES: "choose a writable folder with paths.outputs=DIR and paths.models=DIR",
    errno.EPERM: "choose a writable folder with paths.outputs=DIR and paths.models=DIR",
    errno.EROFS: "choose a writable folder with paths.outputs=DIR and paths.models=DIR",
    errno.ENOTDIR: "a file is in the place of a folder; choose another with paths.outputs=DIR",
    errno.EEXIST: "a file is in the place of a folder; choose another with paths.outputs=DIR",
    errno.EISDIR: "a folder is in the place of a file; move it away, then rerun the same command",
    errno.ELOOP: "a link is in the place of a file; move it away, then rerun the same command",
    errno.ENOENT: "it was moved or removed meanwhile; put it back, then rerun the same command",
    errno.EIO: "the disk is failing; repair it or choose another folder, then rerun the same command",
    errno.ESTALE: "the file server has lost it; rerun the same command once it is back",
    errno.ENAMETOOLONG: "choose a shorter name= or study=",
}


def composition_sentence(error: BaseException) -> str | None:
    """The sentence for a config that Hydra or OmegaConf cannot compose; None for any other error."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(error, HydraException | OmegaConfBaseException) and not _raised_by_hydra(error):
        return None
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        if plugins.is_group(match[1]):
            given = next((text for text in sys.argv[1:] if key_of(text) == match[1]), "=NAME").partition("=")[2]
            return f"{match[1]}: has no default choice here to override; give +{match[1]}={given}"
        return f"{match[1]}: there is no such config group"
    if match := re.search(r"Could not (?:override|delete from config\.) ?'([^']+)'", text):
        return no_such_key(match[1])
    if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"{match[1]}: already exists; leave out the +"
    if match := re.search(r"Could not (?:find|load|append) '([^']+)'", text):
        group, _, name = match[1].rpartition("/")
        return f"{group or 'config'}={name}: there is no such choice; {choices(group, name)}"
    return first_line(error).rstrip(".")


def _raised_by_hydra(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").startswith(("hydra.", "omegaconf."))


def choices(group: str, given: str) -> str:
    """The choices of a config group, as a clause; of many choices only those nearest to `given`."""
    names = sorted(name for name in plugins.files(group) if name != "base")
    if len(names) > 20:
        near = difflib.get_close_matches(given, names, n=3, cutoff=0)
        return f"the choices are {', '.join(near)} and {len(names) - 3} others, which --help lists"
    return f"the choices are {', '.join(names)}" if names else "there is no such config group"


def key_values(arguments: Sequence[str], allowed: Sequence[str]) -> dict[str, str]:
    """The `key=value` arguments of a command that composes no config; raises `UserError` for others."""
    values = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in allowed:
            known = ", ".join(f"{name}=…" for name in allowed)
            raise UserError(f"{argument}: is not an argument of this command; give {known}")
        values[key] = value
    return values


def _stop(sentence: str, status: int = 2) -> None:
    print(f"opd: {printable_text(sentence)}", file=sys.stderr)
    sys.exit(status)
