"""Reading and writing record files: YAML, JSON and JSON lines. Nothing here imports torch."""

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from opd.config.identity import as_today
from opd.errors import first_line
from opd.printable import printable

# Types of a record's fields: numbers that every reader of JSON holds exactly, and nothing converted.
Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Flag = Annotated[bool, Field(strict=True)]


T = TypeVar("T")


class RecordError(ValueError):
    """A record that cannot be read; the message names the file and what is wrong with it."""


def now() -> str:
    """The current time, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def make_folder(folder: Path) -> None:
    """Makes `folder` and its parents where they are missing; raises an `OSError` that `opd.cli` can explain."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # some file systems, such as /proc, report a refusal like this
        raise PermissionError(errno.EACCES, "No folder can be made there", str(folder)) from None


def write_atomic(file: Path, content: str | bytes) -> None:
    """Writes to a temporary file, flushes it to disk and renames it: readers see the old file or the new one."""
    make_folder(file.parent)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as out:
            out.write(content.encode() if isinstance(content, str) else content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error  # which names the file, not the part of it


def remove_parts(folder: Path) -> None:
    """Removes what writers that were killed have left half-written in `folder` and the folders in it."""
    for part in (*folder.glob(".*.part"), *folder.glob("*/.*.part")):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def read_config(file: Path) -> dict[str, Any]:
    """A recorded config of any version, in YAML or JSON, under today's names and with nothing resolved; raises
    `RecordError`.
    """
    from yaml import YAMLError

    from opd.config.plain_yaml import load_yaml

    content = read_bytes(file)
    try:
        config = load_yaml(content.decode())
    except (ValueError, RecursionError, YAMLError) as error:
        raise RecordError(f"{file}: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise RecordError(f"{file}: is not a mapping")
    return as_today(config)


def read_json(file: Path) -> dict[str, Any]:
    """One JSON object; raises `RecordError`."""
    return _parse(read_bytes(file), str(file))


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """JSON objects, one a line. A torn last line (no newline) is dropped; any other bad one raises `RecordError`."""
    yield from parse_lines(read_bytes(file), file)


def read_bytes(file: Path) -> bytes:
    """A record's content. A pipe or device in its place, which might never end, is refused with `RecordError`."""
    try:
        kind = file.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise RecordError(f"{file}: is a pipe or a device")
        return file.read_bytes()
    except OSError as error:
        raise RecordError(f"{file}: {error.strerror}") from error


def parse_lines(content: bytes, file: Path) -> Iterator[dict[str, Any]]:
    """`read_lines` of content that was read from `file`."""
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        yield parse_line(line, file, number)


def parse_line(line: bytes, file: Path, number: int) -> dict[str, Any]:
    """The JSON object in line `number` of `file`; raises `RecordError`."""
    return _parse(line, f"{file}, line {number}")


def as_record(kind: type[T], content: Any, place: str) -> T:
    """`content` as the dataclass `kind`; keys that it does not have are left out.

    Raises:
        RecordError: for a field that is missing or of another type, naming `place` and the field.
    """
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise RecordError(f"{place}: has no {where!r}") from None
        said = first["msg"][:1].lower() + first["msg"][1:]
        raise RecordError(f"{place}: {where} is {printable(repr(first['input']), limit=60)}; {said}") from None


@cache
def _adapter(kind: type) -> Any:
    return TypeAdapter(kind)


def json_line(record: Mapping[str, Any]) -> str:
    """One line of JSON, in which NaN and infinity are null: JSON has neither."""
    return json.dumps(without_nan(record)) + "\n"


def without_nan(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with None in the place of NaN and infinity."""
    return {key: None if _missing(value) else value for key, value in record.items()}


def _parse(text: bytes, place: str) -> dict[str, Any]:
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{place}: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise RecordError(f"{place}: is not a JSON object")
    return content


def _missing(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
