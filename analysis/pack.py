"""A study's exports with their page in one archive, `analysis.study … out=FILE.zip`, for another machine.

An archive may come from elsewhere: of what it holds only the files of an export are read, by their names, each to the
size that it gives, into a folder of our own. Equal contents are packed into equal bytes.
"""

import io
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.study_schema import CONFIGS, TABLES
from opd.errors import UserError
from opd.printable import printable

if TYPE_CHECKING:
    from analysis.load import Records

SUFFIX, PAGE = ".zip", "report.html"
EXPORTS = (*(f"{name}.parquet" for name in TABLES), CONFIGS)
MOST_BYTES = 2**31  # of all files, unpacked
_DIRECTORY = 2**16  # bytes of an archive's list of files, which is read whole
_WRITTEN = (1980, 1, 1, 0, 0, 0)  # the time of every file: the earliest that the format has
# Where a path on a machine stands in a sentence: from the root or the home, with at least two parts.
_PLACE = re.compile(r"(?<![\w.:/~-])~?/(?:[^\s/'\"`,;:()]+/)+([^\s/'\"`,;:()]+)")


def packed(files: Mapping[str, bytes]) -> bytes:
    """The archive of files by name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _WRITTEN)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # on every system, what a plain file is on Unix
            # Parquet is compressed already.
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(".parquet") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return out.getvalue()


@contextmanager
def opened(runs: Path) -> Iterator[Path]:
    """The folder that `runs` names, or for a while that of the exports which the archive `runs` holds.

    Raises:
        UserError: for a file that is no archive of an export's files alone.
    """
    if not runs.is_file():
        yield runs
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            _unpack(runs, Path(folder))
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            reason = printable(str(error) or type(error).__name__, limit=80)
            raise UserError(f"runs={runs}: is not a readable archive of analysis.study ({reason})") from None
        try:
            yield Path(folder)
        except UserError as error:
            raise UserError(str(error).replace(folder, str(runs))) from None


def _unpack(archive: Path, folder: Path) -> None:
    _refuse_long_directory(archive)
    with zipfile.ZipFile(archive) as content:
        names = content.namelist()
        for name in names:
            if name not in (*EXPORTS, PAGE) or names.count(name) > 1:
                raise zipfile.BadZipFile(f"it has {name!a}, which is not a file of an export, or has it twice")
        if sum(entry.file_size for entry in content.infolist()) > MOST_BYTES:
            raise zipfile.BadZipFile(f"its files are larger than {MOST_BYTES >> 30} GiB")
        for name in set(names) - {PAGE}:
            with content.open(name) as packed_file, open(folder / name, "xb") as file:
                shutil.copyfileobj(packed_file, file)


def _refuse_long_directory(archive: Path) -> None:
    """Refuses, before it is read, a list of files that is no list of a few; `packed` ends a file with its length."""
    with open(archive, "rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - 42))
        end = file.read().rjust(42, b"\0")
    if end[20:24] != b"PK\5\6" or end[:4] == b"PK\6\7" or struct.unpack_from("<I", end, 32)[0] > _DIRECTORY:
        raise zipfile.BadZipFile("it does not end as analysis.study writes it")


def without_places(records: "Records") -> "Records":
    """The records with what failed runs and damaged files say, but not where on this machine they were."""

    def named(text: Any) -> Any:
        return _PLACE.sub(r"\1", text) if isinstance(text, str) else text

    return replace(
        records,
        runs=records.runs.assign(error=records.runs["error"].map(named)),
        excluded=records.excluded.assign(reason=records.excluded["reason"].map(named)),
        damage=[(run, left_out, named(reason)) for run, left_out, reason in records.damage],
    )


def places(configs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Key → value of what in configs is a path from the root or the home: part of a run's hash, it stays there."""
    return {
        key: value
        for config in configs
        for key, each in config.items()
        for value in (each if isinstance(each, list) else [each])
        if isinstance(value, str) and _PLACE.fullmatch(value)
    }
