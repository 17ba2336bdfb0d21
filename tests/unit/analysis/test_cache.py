import dataclasses
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analysis import cache as caching, load as loading
from analysis.cache import FOLDER, SUFFIX, Cache
from analysis.load import Records, load
from opd.records.run_dir import RunDir, find_runs
from tests.unit.analysis.fake_runs import Fake, write_run

SMALL = Fake(num_steps=4, every=2, k=2, benchmarks={"arithmetic": 3, "gsm8k": 2})


def cached(root: Path) -> Records:
    """Loaded with a cache that keeps what has only just been written, too."""
    return load(root, cache=Cache(root, margin=0.0))


def kept(root: Path) -> list[Path]:
    return sorted((root / FOLDER).glob(f"*{SUFFIX}"))


def assert_same(one: Records, other: Records) -> None:
    for name in ("runs", "training", "scores", "answers", "excluded"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    assert one.damage == other.damage


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the runs that were read from their records."""
    names: list[str] = []

    def reading(run: RunDir, read=caching.read_run.read_run):
        names.append(run.path.name)
        return read(run)

    monkeypatch.setattr(caching.read_run, "read_run", reading)
    return names


def test_cold_warm_and_no_cache_give_the_same(all_runs, tmp_path, read):
    root = tmp_path / "runs"
    shutil.copytree(all_runs, root)
    none, cold = load(root), cached(root)
    assert len(read) == len(find_runs(root))
    read.clear()
    warm = cached(root)
    assert_same(none, cold)
    assert_same(none, warm)
    whole = len(kept(root))
    assert whole > 15 and len(read) == len(find_runs(root)) - whole  # only what is damaged is read again
    assert {"foreign", "empty"} <= set(read)


def test_processes_read_the_same(all_runs, tmp_path, monkeypatch):
    root = tmp_path / "runs"
    shutil.copytree(all_runs, root)
    alone = load(root)
    monkeypatch.setattr(loading, "FEWEST", 1)
    assert_same(alone, load(root))
    assert_same(alone, cached(root))
    assert len(kept(root)) > 15
    assert_same(alone, cached(root))


@pytest.mark.parametrize("record", ["config.yaml", "status.json", "metrics.jsonl", "evaluate/step_000002.jsonl"])
def test_a_changed_record_is_read_again_even_if_its_size_and_time_are_as_they_were(tmp_path, read, record):
    run = write_run(tmp_path, SMALL)
    write_run(tmp_path, dataclasses.replace(SMALL, seed=1), folder="other")
    before = cached(tmp_path)
    read.clear()
    file = run.path / record
    times = file.stat()
    old, new = {
        "config.yaml": (b'"seed": 0', b'"seed": 7'),
        "status.json": (b'"finished"', b'"failed"  '),
        "metrics.jsonl": (b'"step": 3, "time": 4.5', b'"step": 3, "time": 9.5'),
        "evaluate/step_000002.jsonl": (b'"correct": true', b'"correct":false'),
    }[record]
    content = file.read_bytes()
    assert old in content
    with file.open("r+b") as out:
        out.write(content.replace(old, new))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size
    after = cached(tmp_path)
    assert read == [run.path.name]
    assert_same(after, load(tmp_path))
    if record != "metrics.jsonl":
        assert not before.runs.equals(after.runs) or not before.scores.equals(after.scores)
    assert len(kept(tmp_path)) == 2  # the old one is gone


def test_a_new_and_a_removed_evaluation_are_noticed(tmp_path, read):
    run = write_run(tmp_path, SMALL)
    cached(tmp_path)
    shutil.copy(run.samples_file(2), run.samples_file(3))
    assert len(cached(tmp_path).scores) == 20
    run.samples_file(3).unlink()
    assert_same(cached(tmp_path), load(tmp_path))
    assert len(read) == 3


def test_a_damaged_cache_is_not_used(tmp_path, read):
    write_run(tmp_path, SMALL)
    whole = cached(tmp_path)
    (file,) = kept(tmp_path)
    content = file.read_bytes()
    for damaged in (b"", b"PAR1", content[:-9], content[: len(content) // 2], b"\xff" * 100):
        file.write_bytes(damaged)
        assert_same(cached(tmp_path), whole)
    for at in range(0, len(content), 499):
        file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        assert_same(cached(tmp_path), whole)
        assert file.read_bytes() == content
    assert len(read) == 1 + 5 + len(range(0, len(content), 499))


@pytest.mark.parametrize("there", ["a file", "a link to nowhere"])
def test_a_folder_that_cannot_be_written_to_has_no_cache(tmp_path, there):
    write_run(tmp_path, SMALL)
    if there == "a file":
        (tmp_path / FOLDER).write_text("")
    else:
        (tmp_path / FOLDER).symlink_to("/nowhere/at/all")
    for _ in range(2):
        assert_same(cached(tmp_path), load(tmp_path))


def test_what_has_only_just_been_written_is_not_kept(tmp_path):
    write_run(tmp_path, SMALL)
    load(tmp_path, cache=Cache(tmp_path))
    assert kept(tmp_path) == []


def test_other_code_reads_anew(tmp_path, read, monkeypatch):
    write_run(tmp_path, SMALL)
    cached(tmp_path)
    monkeypatch.setattr(caching, "_version", lambda: "of other code")
    cached(tmp_path)
    assert len(read) == 2 and len(kept(tmp_path)) == 1


def test_the_cache_is_no_run_and_forgets_runs_that_are_gone(tmp_path):
    write_run(tmp_path, SMALL)
    gone = write_run(tmp_path, dataclasses.replace(SMALL, seed=1))
    cached(tmp_path)
    assert len(kept(tmp_path)) == 2 and len(find_runs(tmp_path)) == 2
    assert (tmp_path / FOLDER / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    shutil.rmtree(gone.path)
    assert len(cached(tmp_path).runs) == 1 and len(kept(tmp_path)) == 1
    shutil.rmtree(tmp_path / FOLDER)
    assert len(cached(tmp_path).runs) == 1
