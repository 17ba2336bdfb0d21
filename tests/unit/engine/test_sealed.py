import os
from collections.abc import Callable
from pathlib import Path

import pytest

from opd.engine.sealed import CHECKSUMS, damage, written_whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with written_whole(tmp_path / "step") as part:
        (part / "a.bin").write_bytes(bytes(range(256)))
        (part / "inner").mkdir()
        (part / "inner" / "b.txt").write_text("words")
    return tmp_path / "step"


def test_a_folder_is_whole_as_written(folder: Path):
    assert damage(folder) is None
    assert [each.name for each in folder.parent.iterdir()] == ["step"]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: flip(folder / "a.bin"), "a.bin is not what was written"),
        (lambda folder: os.truncate(folder / "a.bin", 200), "a.bin has 200 bytes instead of 256"),
        (lambda folder: (folder / "inner" / "b.txt").unlink(), "inner/b.txt is missing"),
        (lambda folder: (folder / CHECKSUMS).unlink(), "checksums.json cannot be read"),
        (lambda folder: os.truncate(folder / CHECKSUMS, 30), "checksums.json cannot be read"),
        (lambda folder: (folder / CHECKSUMS).write_text('{"a.bin": 3}'), "it cannot be read, "),
    ],
)
def test_damage_is_named(harm: Callable[[Path], None], said: str, folder: Path):
    harm(folder)
    assert str(damage(folder)).startswith(said)


def test_what_fails_leaves_the_old_folder(folder: Path):
    with pytest.raises(OSError, match="full"), written_whole(folder) as part:
        (part / "a.bin").write_bytes(b"half")
        raise OSError(28, "full")
    assert damage(folder) is None and [each.name for each in folder.parent.iterdir()] == ["step"]
