"""Folders that are written whole or not at all, and that show later whether they still are. Nothing here imports torch.

A folder is written beside its place, by one rank or by several, each of which sums and flushes what it wrote;
`checksums.json` (size and SHA-256 of every file) is its last file, and then it is renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opd.ranks.dist import Ranks
from opd.records.run_dir import RecordError, read_json

CHECKSUMS = "checksums.json"

Sum = dict[str, int | str]  # a file's bytes and sha256


def write_sealed(folder: Path, ranks: Ranks, fill: Callable[[Path], None], finish: Callable[[Path], None]) -> None:
    """Puts what the ranks write in the place of `folder`, or leaves that as it was.

    Each rank calls `fill` with a folder of its own, on a file system that they share; no two may write a file of one
    name. The main rank then calls `finish` with the folder that has it all, to which it may add.

    Raises:
        on every rank what was raised on any; see `Ranks.together`.
    """
    part = folder.with_name(f".{folder.name}.part")
    own = part / f"rank_{ranks.rank}"

    def begin() -> None:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)

    def write() -> dict[str, Sum]:
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
        sums = {name: known for files in written for name, known in files.items()}
        sums |= _flushed(part, known=sums)
        (part / CHECKSUMS).write_text(json.dumps(dict(sorted(sums.items())), indent=1))
        _flush(part / CHECKSUMS)
        _flush(part)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(part, folder)
        _flush(folder.parent)

    try:
        ranks.lead(begin)
        written = ranks.together(write)
        ranks.lead(end)
    except BaseException:
        if ranks.main:
            shutil.rmtree(part, ignore_errors=True)
        raise


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `write_sealed` wrote, as a clause; None where every file is as it was."""
    try:
        sums = read_json(folder / CHECKSUMS)
        for name, expected in sums.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        with ThreadPoolExecutor() as pool:
            for name, found in zip(sums, pool.map(lambda name: _sum(folder / name), sums), strict=True):
                if found != sums[name]:
                    return f"{name} is not what was written"
    except RecordError:
        return f"{CHECKSUMS} cannot be read"
    except (OSError, TypeError, KeyError) as error:
        return f"it cannot be read, {str(error) or type(error).__name__}"
    return None


def _flushed(folder: Path, known: Collection[str] = ()) -> dict[str, Sum]:
    """The sums of a folder's files but the `known`, which are on disk then."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    sums = {name: _sum(file) for name, file in files.items() if name not in known}
    for name in sums:
        _flush(files[name])
    return sums


def _sum(file: Path) -> Sum:
    with open(file, "rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
