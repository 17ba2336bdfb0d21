"""A copy of the code and `conf/` for each submission, so that editing the checkout changes no queued run."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from opd.config.places import CONF, ROOT
from opd.errors import UserError
from opd.records.manifest import SNAPSHOT, git_state


class Code(NamedTuple):
    """A version of the code: the hash of its files, and the commit that is checked out."""

    hash: str
    commit: str | None
    dirty: bool | None


def current() -> Code:
    """The current code of this checkout."""
    return Code(_digest(ROOT, _files())[:12], *git_state())


def take(code: Code, into: Path) -> Path:
    """Copy the code to the folder `into/<hash>`, unless it is there.

    Raises:
        UserError: where the checkout changed meanwhile, or the folder does not contain this code.
    """
    folder = into / code.hash
    if folder.exists():
        return verify(folder)
    part = folder.with_name(f".{code.hash}.part")
    shutil.rmtree(part, ignore_errors=True)
    for file in _files():
        copy = part / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    if current().hash != code.hash:
        shutil.rmtree(part)
        raise UserError(f"{ROOT}: the code changed while it was being copied; run the same command again")
    (part / SNAPSHOT).write_text(json.dumps({"hash": code.hash, "git_commit": code.commit, "git_dirty": code.dirty}))
    part.rename(folder)
    return folder


def verify(folder: Path) -> Path:
    """A folder that `take` made, after checking its content against the hash in its name.

    Raises:
        UserError: where it is missing, or a file in it was changed, added or removed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: does not exist; give --new-code to run with this checkout's code")
    linked = any(path.is_symlink() for path in folder.rglob("*"))
    for cache in [] if linked else list(folder.rglob("__pycache__")):  # Python would run it instead of the source
        shutil.rmtree(cache)
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and path != folder / SNAPSHOT)
    if linked or _digest(folder, files)[:12] != folder.name:
        raise UserError(
            f"{folder}: has changed since the code was copied there; remove it once no run uses it, and run the same "
            "command again"
        )
    return folder


def _digest(root: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _files() -> list[Path]:
    # Where this is installed, hydra_plugins also has other plugins: those are packages, ours are modules.
    files = {*(ROOT / "hydra_plugins").glob("*"), *CONF.rglob("*")}
    files |= {file for package in ("opd", "sweeps") for file in (ROOT / package).rglob("*")}
    return sorted(
        file
        for file in files
        if file.is_file()
        and file.suffix in (".py", ".yaml", ".json", ".safetensors")
        and "__pycache__" not in file.parts
    )
