import os
from collections.abc import Callable
from pathlib import Path

import pytest

from opd.checkpoint.atomic import CHECKSUMS, find_damage, write_folder
from tests.unit.small import ALONE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def fill(part: Path) -> None:
        (part / "a.bin").write_bytes(bytes(range(256)))
        (part / "inner").mkdir()
        (part / "inner" / "b.txt").write_text("words")

    write_folder(tmp_path / "step", ALONE, fill, finish=lambda part: None)
    return tmp_path / "step"


def test_what_is_added_at_the_end_is_sealed_too(tmp_path: Path):
    write_folder(tmp_path / "step", ALONE, lambda part: None, finish=lambda part: write(part / "index"))
    assert find_damage(tmp_path / "step") is None
    (tmp_path / "step" / "index").write_text("another")
    assert "index" in str(find_damage(tmp_path / "step"))


def write(file: Path) -> None:
    file.write_text("words")


def test_a_folder_is_whole_as_written(folder: Path):
    assert find_damage(folder) is None
    assert [each.name for each in folder.parent.iterdir()] == ["step"]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: flip(folder / "a.bin"), "a.bin differs from what was written"),
        (lambda folder: os.truncate(folder / "a.bin", 200), "a.bin has 200 bytes instead of 256"),
        (lambda folder: (folder / "inner" / "b.txt").unlink(), "inner/b.txt is missing"),
        (lambda folder: (folder / CHECKSUMS).unlink(), "checksums.json cannot be read"),
        (lambda folder: os.truncate(folder / CHECKSUMS, 30), "checksums.json cannot be read"),
        (lambda folder: (folder / CHECKSUMS).write_text('{"a.bin": 3}'), "it cannot be read: "),
    ],
)
def test_damage_is_named(harm: Callable[[Path], None], said: str, folder: Path):
    harm(folder)
    assert str(find_damage(folder)).startswith(said)


def test_what_fails_leaves_the_old_folder(folder: Path):
    def fill(part: Path) -> None:
        (part / "a.bin").write_bytes(b"half")
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        write_folder(folder, ALONE, fill, finish=lambda part: None)
    assert find_damage(folder) is None and [each.name for each in folder.parent.iterdir()] == ["step"]
