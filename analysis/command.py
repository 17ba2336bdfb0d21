"""Shared by the commands of this package: key=value arguments, and user errors as one sentence."""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from opd.errors import UserError
from opd.interrupts import INTERRUPTED, interruptible
from opd.printable import printable_text, say
from opd.records.files import write_atomic

Arguments = TypeVar("Arguments")


def parse(argv: Sequence[str], kind: type[Arguments]) -> Arguments:
    """key=value arguments → `kind`, a dataclass that declares their types and ranges; raises `UserError`."""
    from pydantic import TypeAdapter, ValidationError

    keys = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    given: dict[str, str] = {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        if key not in keys or not equals:
            raise UserError(f"{argument} is not an argument; the arguments are {'=, '.join(keys)}=")
        if key in given or not value:
            raise UserError(f"{key}= is given {'twice' if key in given else 'without a value'}; give it one value")
        given[key] = value
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key, message = problem["loc"][0], problem["msg"].removeprefix("Input ")
        if key not in given:
            raise UserError(f"{key}= is missing; give a folder, as {key}=DIR") from None
        raise UserError(f"{key}={given[str(key)]} {message}") from None


def write(out: Path, files: Mapping[str, str | bytes]) -> None:
    """Writes file name → content under `out`; raises `UserError`."""
    try:
        for name, content in files.items():
            write_atomic(out / name, content)
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror}; give another folder") from error


def run(argv: Sequence[str], doc: str | None, kind: type[Arguments], work: Callable[[Arguments], Any]) -> int:
    """Prints what `work` returns for the arguments, or with --help the `doc`.

    Returns:
        The exit status: 0, 2 for a user error, 130 for a Ctrl-C, each reported in one sentence.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 costs a character, not the report
    if {"-h", "--help"} & set(argv):
        print((doc or "").strip())
        return 0
    try:
        with interruptible():
            say(str(work(parse(argv, kind))))
    except UserError as error:
        print(printable_text(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command begins again", file=sys.stderr)
        return INTERRUPTED
    return 0
