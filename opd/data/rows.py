"""The rows of a problem set: of a JSONL, JSON, CSV or Parquet file, or of a dataset on the Hugging Face Hub."""

import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.config.schema import Dataset
from opd.data import hub
from opd.errors import UserError, first_line

# The place to name in a message, the number of the line or row, and what it holds.
Row = tuple[str, int, dict[str, Any]]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.A)


def find(source: Dataset, data_dir: Path | None) -> Path | None:
    """The source's `file`, as given or under `data_dir`; None where it is to come from the hub.

    Raises:
        UserError: where there is neither file nor hub, or a directory in the place of the file.
    """
    candidates = [] if source.file is None else [Path(source.file), *([data_dir / source.file] if data_dir else [])]
    for file in candidates:
        if file.is_file():
            return file
        if file.is_dir():
            found = "" if str(file) == source.file else f"{file} "
            raise UserError(f"file={source.file}: {found}is a directory; name a file in it")
    if source.hub is not None:
        return None
    if not candidates:
        raise UserError(
            "a prompt set needs a file= (JSONL, CSV or Parquet) or a hub= (dataset on the Hugging Face Hub)"
        )
    where = "".join(f", nor {file}" for file in candidates[1:])
    raise UserError(f"file={source.file}: there is no such file{where}, and there is no hub= to load the set from")


def read_file(file: Path) -> Iterator[Row]:
    """The rows of a file, by the end of its name; what is neither .csv, .tsv, .parquet nor .json is read as JSONL.

    Raises:
        UserError: where it cannot be read, or a row of it is no JSON object.
    """
    return _READERS.get(file.suffix.lower(), read_jsonl)(file)


def read_jsonl(file: Path) -> Iterator[Row]:
    """(place, line number, object) of each line that is not blank; raises `UserError`."""
    for number, line in enumerate(_bytes(file).split(b"\n"), 1):
        if line.strip():
            place = f"{file}, line {number}"
            yield place, number, _object(_json(line, place), place)


def _json_or_lines(file: Path) -> Iterator[Row]:
    """A list of objects; what does not begin like a list is read as JSONL, which often has the name too."""
    content = _bytes(file)
    if not content.lstrip().startswith(b"["):
        yield from read_jsonl(file)
        return
    for number, row in enumerate(_json(content, str(file)), 1):
        place = f"{file}, object {number}"
        yield place, number, _object(row, place)


def _csv(file: Path) -> Iterator[Row]:
    """Rows of texts; an empty cell is an empty text."""
    import pandas

    separator = "\t" if file.suffix.lower() == ".tsv" else ","
    try:
        table = pandas.read_csv(file, dtype=str, keep_default_na=False, sep=separator, encoding="utf-8-sig")
    except (ValueError, OSError, pandas.errors.ParserError) as error:
        raise UserError(f"{file}: cannot be read as CSV: {first_line(error)}") from error
    for number, row in enumerate(table.to_dict("records"), 1):
        yield f"{file}, row {number}", number, {str(name): value for name, value in row.items()}


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read as Parquet: {first_line(error)}") from error


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".json": _json_or_lines,
    ".parquet": _parquet,
}


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error


def _json(content: bytes, place: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is not JSON ({first_line(error)})") from error


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{place}: is not a JSON object")
    return row


# ---- the hub


def read_hub(source: Dataset, *, needed: Sequence[str], useful: Sequence[str]) -> Iterator[Row]:
    """The rows of the hub's dataset, with the fields `needed` and those that are `useful` where it has them.

    Raises:
        UserError: where it cannot be loaded or lacks a field that is needed, or the connection is lost.
    """
    part = ", ".join(
        f"{key} {value}"
        for key, value in (("config", source.config), ("split", source.split), ("revision", source.revision))
        if value is not None
    )
    dataset = _download(source, part)
    names = dataset.column_names  # a stream may not know them before its first row
    for field in needed if names else []:
        if field not in names:
            raise UserError(f"{source.hub} ({part}): has no field {field!r}; its fields are {', '.join(names)}")
    wanted = list(dict.fromkeys([*needed, *(field for field in useful if field in (names or []))]))
    rows = iter(dataset.select_columns(wanted) if names else dataset)
    for number in itertools.count(1):
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # a stream is read on demand, and the connection may be lost meanwhile
            raise UserError(f"{source.hub} ({part}), row {number}: cannot be read: {first_line(error)}") from error
        yield f"{source.hub} ({part}), row {number}", number, row


def _download(source: Dataset, part: str) -> Any:
    import datasets
    from datasets import config
    from datasets.exceptions import DatasetNotFoundError
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as LOADERS

    # The library takes other names for local paths: a folder to read, or a script that reads one.
    if source.hub in LOADERS or not _HUB_ID.fullmatch(str(source.hub)):
        raise UserError(
            f"hub={source.hub}: is not the name of a Hugging Face Hub dataset (OWNER/NAME); give a file of your own as "
            "file= (JSONL, CSV or Parquet)"
        )
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)  # six lines a lost connection: the refusal below says it in one
    config.HF_HUB_OFFLINE = not hub.reachable()
    try:
        return datasets.load_dataset(
            str(source.hub), source.config, split=source.split, revision=source.revision, streaming=source.streaming
        )
    except DatasetNotFoundError as error:
        why, cause = "does not exist or is private", error
    except (ConnectionError, TimeoutError) as error:
        why, cause = "cannot be reached", error
    except Exception as error:  # the client raises many kinds for a split, subset or file that is not there
        why, cause = f"cannot be loaded: {first_line(error)}", error
    finally:
        client.setLevel(level)
    no_file = f", and there is no file {source.file}" if source.file else ""
    raise UserError(
        f"hub={source.hub} ({part}) {why} on the Hugging Face Hub{no_file}; a JSONL file given as "
        "file= needs no network"
    ) from cause
