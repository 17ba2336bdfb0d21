"""The overrides of a command line: as a user types them, and as Hydra reads them. Nothing here composes a config."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from opd.config import plugins
from opd.errors import UserError

# Texts that may stand in a file (KEY=@FILE), and in which \n is the end of a line.
_SOURCE = r"(?:prompts\.source(?:\.sources\.[^.]+)?|evaluate\.sources\.[^.]+)"
_LONG_TEXTS = re.compile(rf"prompts\.(?:prefix|suffix|system)|{_SOURCE}\.problem")
LONGEST = 1 << 20  # bytes of such a file

# Mappings with names of the user's own, which no file of `conf/` has: their keys need no plus.
_OPEN = re.compile(rf"evaluate\.sources\.[^.]+(?:\..+)?|{_SOURCE}\.where(?:\..+)?")

# LaTeX commands that begin with \n, which is no end of a line there.
_COMMANDS = ("nabla", "natural", "ncong", "ne", "nearrow", "neg", "neq", "nexists", "ngeq", "ni", "nleq", "nmid", "not")
_COMMANDS += (
    "notin",
    "nparallel",
    "nrightarrow",
    "nsim",
    "nsubseteq",
    "nu",
    "nwarrow",
    "newline",
    "nolimits",
    "nonumber",
)
_NEWLINE = re.compile(rf"(?<!\\)((?:\\\\)*)\\n(?!(?:{'|'.join(word[1:] for word in _COMMANDS)})(?![A-Za-z]))")

# Words that Hydra does not read as text.
_NOT_TEXT = ("null", "true", "false", "nan", "inf")


def key_of(override: str) -> str:
    """The key or group that an override sets: `gamma` of `+gamma=0.5`."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def typed(value: Any) -> str:
    """A value as text for Hydra's command line; an interpolation stays one."""
    if isinstance(value, str):
        word = re.fullmatch(r"[A-Za-z_][\w./:@+-]*", value) and value.lower() not in _NOT_TEXT
        if word or value.startswith("${"):
            return value
        # Hydra halves backslashes right before a quote, and there alone.
        return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)\Z", r"\1\1", value)) + "'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{typed(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(typed, value)) + "]"
    return json.dumps(value)


def as_read(words: Sequence[str], *, multirun: bool) -> list[str]:
    r"""The overrides as Hydra reads them.

    The value of a key that is a text is taken as it stands, whatever signs it has; with several runs (`multirun`)
    commas separate texts. `~/` is the home folder. Long texts may stand in a file (`prompts.suffix=@FILE`), and `\n`
    in them is the end of a line, unless a LaTeX command begins with it.

    Raises:
        UserError: for a word that is no override, or whose value Hydra cannot read, with what to type instead.
    """
    return [_as_read(word, words[place + 1 : place + 2], multirun) for place, word in enumerate(words)]


def _as_read(word: str, following: Sequence[str], multirun: bool) -> str:
    if word.startswith("-"):  # a flag
        return word
    if "=" not in word:
        return word if word.startswith("~") else _no_value(word, following)
    start, _, value = word.partition("=")
    key = key_of(word)
    value = re.sub(r"(^|[\[,:]\s*)~(?=/)", lambda found: found[1] + str(Path.home()), value)
    word = f"{start}={value}"
    if is_text(key):
        word = f"{start}={_text(key, value, word, multirun)}"
    if _OPEN.fullmatch(key) and "@" not in start and not start.startswith(("+", "~")):
        start = f"++{start}"
        word = f"++{word}"
    if _parsed(word) is None:
        plain = not re.search(r"['\"\\$`!]", value)
        given = f"'{start}=\"{value}\"'" if plain else shlex.quote(f"{start}={typed(value)}")
        raise UserError(f"{key}: {value!r} cannot be read; if it is a text, type {given}, quotes and all")
    return word


def _no_value(word: str, following: Sequence[str]) -> str:
    value = following[0] if following and "=" not in following[0] else "VALUE"
    raise UserError(f"{word}: has no value; type {word}={value}")


def _text(key: str, value: str, word: str, multirun: bool) -> str:
    """The value of a text's key: as given where Hydra reads it as one text, else quoted."""
    if is_long(key) and value.startswith("@"):
        return typed(_content(key, Path(value[1:])))
    override = _parsed(word)
    if override is None or (override.is_sweep_override() and not multirun):
        return typed(_with_newlines(value) if is_long(key) else value)
    read = None if override.is_sweep_override() else override.value()
    if is_long(key) and (text := _with_newlines(str(read))) != str(read):
        return typed(text)
    return typed(value) if isinstance(read, int | float) else value  # a name like 7 or true


def _with_newlines(text: str) -> str:
    return _NEWLINE.sub(r"\1" + "\n", text)


def _content(key: str, file: Path) -> str:
    """What a file says, without the end of its last line."""
    try:
        if not file.is_file():
            raise UserError(f"{key}=@{file}: there is no such file; a text that begins with @ goes into a file itself")
        if file.stat().st_size > LONGEST:
            raise UserError(f"{key}=@{file}: is larger than {LONGEST >> 20} MiB")
        return file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}=@{file}: cannot be read as text ({type(error).__name__})") from error


def _parsed(word: str) -> Any:
    """Hydra's reading of an override; None where it has none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


# ---- which keys are texts


def is_long(key: str) -> bool:
    """Whether a key's text may have several lines, or stand in a file."""
    return _LONG_TEXTS.fullmatch(key) is not None


def is_text(key: str) -> bool:
    """Whether the schema has a text at this key."""
    return not plugins.is_group(key) and any(re.fullmatch(pattern, key) for pattern in _texts_of_a_run())


@cache
def _texts_of_a_run() -> tuple[str, ...]:
    from opd.config.schema import RunConfig

    return tuple(text_keys(RunConfig))


def text_keys(kind: Any, prefix: str = "") -> Iterator[str]:
    """Patterns of the keys of a dataclass whose value may be a text, and of those below it."""
    for entry in fields(kind):
        yield from _text_keys(entry.type, prefix + re.escape(entry.name))


def _text_keys(kind: Any, key: str) -> Iterator[str]:
    for part in parts(kind):
        if part is str:
            yield key
        elif is_dataclass(part):
            yield from text_keys(part, rf"{key}\.")
        elif get_origin(part) is dict:
            yield from _text_keys(get_args(part)[1], rf"{key}\.[^.]+")


def parts(kind: Any) -> Iterator[Any]:
    """The types that a type joins, without what is said of them besides."""
    if get_origin(kind) is Annotated:
        yield from parts(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for each in get_args(kind):
            yield from parts(each)
    else:
        yield kind
