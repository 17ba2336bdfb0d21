"""The manifest: code, packages and hardware of a run. Nothing here imports torch."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from opd.config import identity, plugins
from opd.config.places import ROOT

# In the copy of the code that a sweep submits: the commit that it was copied from.
SNAPSHOT = "snapshot.json"

PACKAGES = ("opd", "torch", "transformers", "peft", "tokenizers", "vllm", "hydra-core", "math-verify", "numpy")


def manifest(
    config: Mapping[str, Any],
    *,
    world_size: int,
    tokenizers: Mapping[str, str],
    contents: Mapping[str, str],
    date: str | None = None,
    vocab_size: int | None = None,
    unchecked: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of `manifest.json`; `tokenizers` maps a role to the hash of its vocabulary, `contents` a config key
    to the hash of what stands behind it, `date` is the one in the prompts, if any, `vocab_size` how many ids a student
    that was cut has left, and `unchecked` are sentences about what could not be checked.
    """
    commit, dirty = git_state()
    return {
        "run_id": identity.run_id(config),
        "config_hash": identity.config_hash(config),
        "git_commit": commit,
        "git_dirty": dirty,
        "packages": {name: number for name in PACKAGES if (number := _version(name))},
        "python": platform.python_version(),
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()},
        "world_size": world_size,
        "tokenizers": dict(tokenizers),
        "contents": dict(contents),
        "date": date,
        "vocab_size": vocab_size,
        "unchecked": list(unchecked),
        "plugins": {name: plugin.hash for name, plugin in plugins.used().items()},
    }


def vocabulary_hash(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 of the sorted token-id pairs: equal for tokenizers with the same vocabulary."""
    return hashlib.sha256(repr(sorted(vocabulary.items())).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state() -> tuple[str | None, bool | None]:
    """The commit of this code and whether it has uncommitted changes; (None, None) where git does not track it.

    A copy of the code that a sweep submitted has a file that says so: the checkout around it may have moved on.
    """
    if (ROOT / SNAPSHOT).exists():
        snapshot = json.loads((ROOT / SNAPSHOT).read_text())
        return snapshot["git_commit"], snapshot["git_dirty"]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # installed, it may be inside another repository
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None
