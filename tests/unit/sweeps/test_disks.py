"""Submissions to disks that cannot be written, on real file systems: one sentence with the reason and the place."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeps import submit
from sweeps.ledger import Ledger
from sweeps.submission import recover

ROOT, CI = os.geteuid() == 0, bool(os.environ.get("CI"))
SWEEP = ("+sweep=gamma", "sweep.seeds=[0]")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system; where that is not allowed the test skips, or fails in CI."""
    places = []

    def mount(*arguments: str) -> Path:
        place = tmp_path / f"mount{len(places)}"
        place.mkdir()
        done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True, check=False)
        if done.returncode:
            (pytest.fail if CI else pytest.skip)(f"cannot mount a file system here: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_reported_and_leaves_nothing_half_submitted(mounted, refused):
    disk = mounted("-t", "tmpfs", "-o", "size=128k", "none")
    said = refused(submit, *SWEEP, f"paths.outputs={disk}")
    assert "No space left on device" in said and str(disk) in said and "free some space" in said
    ledger = Ledger(disk / "main")
    assert not [one for one in ledger.submissions() if one.abandoned is None]
    subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
    with ledger.lock():
        recover(ledger)
    assert not list((ledger.folder / "submissions").glob("*"))


def test_a_read_only_disk_is_reported(mounted, refused):
    disk = mounted("-t", "tmpfs", "-o", "ro", "none")
    said = refused(submit, *SWEEP, f"paths.outputs={disk}")
    assert "Read-only file system" in said and str(disk) in said and "paths.outputs=DIR" in said


@pytest.mark.skipif(not CI and not shutil.which("mkfs.btrfs"), reason="needs btrfs-progs, to test a quota")
def test_an_exhausted_quota_is_reported(mounted, refused, tmp_path: Path):
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(120 << 20)
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True, capture_output=True)
    disk = mounted("-o", "loop", str(image))
    for words in (
        ["quota", "enable", disk],
        ["subvolume", "create", disk / "mine"],
        ["qgroup", "limit", "100k", disk / "mine"],
    ):
        subprocess.run(["btrfs", *map(str, words)], check=True, capture_output=True)
    said = refused(submit, *SWEEP, f"paths.outputs={disk / 'mine'}")
    assert "Disk quota exceeded" in said and str(disk) in said and "the disk quota is exhausted" in said


def test_outputs_without_write_permission_are_reported(tmp_path: Path):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o555)
    command = [sys.executable, "-m", "sweeps.submit", *SWEEP, f"paths.outputs={folder}"]
    if ROOT:  # may write everywhere without this
        os.chown(folder, 65534, 65534)
        command = ["setpriv", "--bounding-set=-dac_override", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"Permission denied ({folder}" in done.stderr and "choose a writable folder" in done.stderr


def test_outputs_that_cannot_be_created_are_reported(refused):
    said = refused(submit, *SWEEP, "paths.outputs=/proc/nowhere")
    assert "No folder can be made there (/proc/nowhere" in said and "choose a writable folder" in said


@pytest.mark.parametrize("place", ["outputs", "outputs/main", "outputs/main/.sweep"])
def test_a_file_in_place_of_a_folder_is_reported(refused, tmp_path: Path, place: str):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("")
    said = refused(submit, *SWEEP, f"paths.outputs={tmp_path / 'outputs'}")
    assert "a file is in the place of a folder" in said and str(tmp_path / place) in said
