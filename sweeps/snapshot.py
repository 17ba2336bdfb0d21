"""The code and config of a submission, copied, so that editing the checkout changes no queued run."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

from opd.errors import UserError
from opd.manifest import SNAPSHOT, git_state

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("opd", "sweeps", "conf", "hydra_plugins")


class Code(NamedTuple):
    """A state of the code: the hash of its files, and the commit it stands at."""

    hash: str
    commit: str | None
    dirty: bool | None


def current() -> Code:
    """The code of this checkout, as it is now."""
    digest = hashlib.sha256()
    for file in _files():
        digest.update(f"{file.relative_to(ROOT)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return Code(digest.hexdigest()[:12], *git_state())


def take(code: Code, into: Path) -> Path:
    """Copies the code to `into/<hash>`, once, and returns that folder.

    Raises:
        UserError: where the checkout changed meanwhile.
    """
    folder = into / code.hash
    if folder.exists():
        return folder
    part = folder.with_name(f".{code.hash}.part")
    shutil.rmtree(part, ignore_errors=True)
    for file in _files():
        copy = part / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    if current().hash != code.hash:
        shutil.rmtree(part)
        raise UserError(f"{ROOT}: the code changed while it was copied; run the same command again")
    (part / SNAPSHOT).write_text(json.dumps({"hash": code.hash, "git_commit": code.commit, "git_dirty": code.dirty}))
    part.rename(folder)
    return folder


def _files() -> list[Path]:
    return sorted(
        file
        for part in PARTS
        for file in (ROOT / part).rglob("*")
        if file.is_file() and file.suffix in (".py", ".yaml", ".json") and "__pycache__" not in file.parts
    )
