"""Tensors from one safetensors file to another, as bytes: nothing is converted, and no more than a piece is in memory.

The format: eight bytes for the length of a header, the header in JSON with each tensor's place in what follows, and the
tensors' bytes.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PIECE = 2**24


def header(file: Path) -> tuple[dict[str, Any], int]:
    """Each tensor's entry by its name, and where their bytes begin in the file."""
    with open(file, "rb") as content:
        size = int.from_bytes(content.read(8), "little")
        entries = json.loads(content.read(size))
    entries.pop("__metadata__", None)
    return entries, 8 + size


def copy_tensors(sources: Iterable[Path], wanted: Callable[[str], bool], target: Path) -> None:
    """Writes the tensors whose names are `wanted` to `target`; no file where there are none."""
    entries, parts, end = dict[str, Any](), list[tuple[Path, int, int]](), 0
    for source in sources:
        listed, start = header(source)
        for name, entry in listed.items():
            if wanted(name):
                first, last = entry["data_offsets"]
                entries[name] = {**entry, "data_offsets": [end, end + last - first]}
                parts.append((source, start + first, last - first))
                end += last - first
    if not entries:
        return
    described = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    described += b" " * (-len(described) % 8)
    with open(target, "wb") as copy:
        copy.write(len(described).to_bytes(8, "little") + described)
        for source, first, size in parts:
            with open(source, "rb") as content:
                content.seek(first)
                for left in range(size, 0, -PIECE):
                    copy.write(content.read(min(left, PIECE)))
