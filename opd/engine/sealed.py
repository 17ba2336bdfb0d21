"""Folders that are written whole or not at all, and that show later whether they still are. Nothing here imports torch.

A folder is written beside its place, with `checksums.json` (size and SHA-256 of every file) as its last file, flushed
to disk and renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opd.records import RecordError, read_json

CHECKSUMS = "checksums.json"


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Gives a folder to fill, which takes the place of `folder` when the block ends, and leaves nothing if it fails."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        files = sorted(path for path in part.rglob("*") if path.is_file())
        sums = {str(file.relative_to(part)): _sum(file) for file in files}
        (part / CHECKSUMS).write_text(json.dumps(sums, indent=1))
        for path in [*files, part / CHECKSUMS]:
            _flush(path)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(part, folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `written_whole` wrote, as a clause; None where every file is as it was."""
    try:
        sums = read_json(folder / CHECKSUMS)
        for name, expected in sums.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
            if _sum(file) != expected:
                return f"{name} is not what was written"
    except RecordError:
        return f"{CHECKSUMS} cannot be read"
    except (OSError, TypeError, KeyError) as error:
        return f"it cannot be read, {str(error) or type(error).__name__}"
    return None


def _sum(file: Path) -> dict[str, int | str]:
    with open(file, "rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
