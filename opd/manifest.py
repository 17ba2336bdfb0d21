"""What ran: code, packages, hardware. Nothing here imports torch."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from opd import records

PACKAGES = ("opd", "torch", "transformers", "tokenizers", "vllm", "hydra-core", "math-verify", "numpy")


def manifest(config: Mapping[str, Any], *, world_size: int, tokenizers: Mapping[str, str]) -> dict[str, Any]:
    """The content of `manifest.json`; `tokenizers` maps a role to the hash of its vocabulary."""
    commit, dirty = _git()
    return {
        "run_id": records.run_id(config),
        "config_hash": records.config_hash(config),
        "git_commit": commit,
        "git_dirty": dirty,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()},
        "world_size": world_size,
        "tokenizers": dict(tokenizers),
    }


def vocabulary_hash(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 over the sorted token-id pairs: equal for tokenizers that read ids alike."""
    return hashlib.sha256(repr(sorted(vocabulary.items())).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> tuple[str | None, bool | None]:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None
