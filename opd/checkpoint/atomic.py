"""Folders that are written atomically, with checksums that show later damage. Nothing here imports torch.

One rank or several write to a temporary folder; each hashes and flushes its own files. The last file is
`checksums.json` (size and SHA-256 of every other file), after which the folder is renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opd.ranks.dist import Ranks
from opd.records.files import RecordError, read_json

CHECKSUMS = "checksums.json"

Checksum = dict[str, int | str]  # a file's bytes and sha256


def write_folder(folder: Path, ranks: Ranks, fill: Callable[[Path], None], finish: Callable[[Path], None]) -> None:
    """Replaces `folder` by what all ranks write, or leaves it as it was. All ranks must call this.

    Calls `fill` on each rank with a folder of its own, on a file system that the ranks share; file names must be unique
    over the ranks. Then calls `finish` on the main rank with the folder that has all files, to which it may add some.

    Raises:
        on every rank what was raised on any; see `Ranks.on_all`.
    """
    part = folder.with_name(f".{folder.name}.part")
    own = part / f"rank_{ranks.rank}"

    def begin() -> None:
        shutil.rmtree(part, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        part.mkdir()

    def write() -> dict[str, Checksum]:
        own.mkdir()
        fill(own)
        return _flushed(own)

    def end() -> None:
        for rank, files in enumerate(written):
            for name in files:
                (part / name).parent.mkdir(exist_ok=True)
                os.rename(part / f"rank_{rank}" / name, part / name)
            shutil.rmtree(part / f"rank_{rank}")
        finish(part)
        sums = {name: checksum for files in written for name, checksum in files.items()}
        sums |= _flushed(part, known=sums)
        (part / CHECKSUMS).write_text(json.dumps(dict(sorted(sums.items())), indent=1))
        _flush(part / CHECKSUMS)
        _flush(part)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(part, folder)
        _flush(folder.parent)

    try:
        ranks.on_main(begin)
        written = ranks.on_all(write)
        ranks.on_main(end)
    except BaseException:
        if ranks.main:
            shutil.rmtree(part, ignore_errors=True)
        raise


def find_damage(folder: Path) -> str | None:
    """The first damage to a folder that `write_folder` wrote, as a clause; None if every file is as it was written, and
    there are no others that a reader would take for a part of it.
    """
    try:
        sums = read_json(folder / CHECKSUMS)
        for name, expected in sums.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        with ThreadPoolExecutor() as pool:
            for name, actual in zip(sums, pool.map(lambda name: _sum(folder / name), sums), strict=True):
                if actual != sums[name]:
                    return f"{name} differs from what was written"
        read = (file for kind in ("*.safetensors", "*.json") for file in sorted(folder.rglob(kind)))
        for name in (str(file.relative_to(folder)) for file in read):
            if name not in sums and name != CHECKSUMS:
                return f"{name} is not in {CHECKSUMS}"
        if not sums:
            return f"{CHECKSUMS} names no file"
    except RecordError:
        return f"{CHECKSUMS} cannot be read"
    except (OSError, TypeError, KeyError) as error:
        return f"it cannot be read: {str(error) or type(error).__name__}"
    return None


def _flushed(folder: Path, known: Collection[str] = ()) -> dict[str, Checksum]:
    """Flushes a folder's files, except the `known`, to disk; returns their checksums."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    sums = {name: _sum(file) for name, file in files.items() if name not in known}
    for name in sums:
        _flush(files[name])
    return sums


def _sum(file: Path) -> Checksum:
    with open(file, "rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
