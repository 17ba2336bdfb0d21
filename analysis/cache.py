"""What was read of a run, kept as one Parquet file a run, so that a folder of many runs is read again in seconds.

A file's name holds three hashes: of the run's path, of what was read (the size and times of each record, and the code
that read them), and of its own bytes. So a file is used only for the records and by the code that it was made of, and
a damaged one is not used at all. What is damaged in a run is looked at anew each time: only whole runs are kept.
The folder may be deleted at any time; where it cannot be written to, there is no cache.
"""

import hashlib
import inspect
import io
import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import columns, contents, evaluation, lines, text, training
from analysis.columns import TRAINING_COLUMNS
from analysis.contents import Contents, read_contents
from analysis.evaluation import SCORES, Evaluation, Example
from analysis.training import Training
from opd.config import plain_yaml
from opd.grading import scores
from opd.records import run_dir as records
from opd.records.run_dir import RunDir, write_whole

FOLDER = ".analysis"  # in the folder that is loaded; hidden, so that no run is looked for in it
_READERS = (columns, contents, evaluation, lines, text, training, plain_yaml, records, scores)
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# What analysis.report has read. Safe to delete.\n"
_HEX = 32
Stamp = str


@dataclass(frozen=True)
class Cache:
    """The cache of the runs under `root`.

    Attributes:
        root: the folder that is loaded.
        margin: seconds that a record must be old to be kept: a change within one tick of the disk's clock leaves no
            trace in its times.
    """

    root: Path
    margin: float = 2.0

    @property
    def folder(self) -> Path:
        return self.root / FOLDER

    def of(self, run: RunDir) -> "Place":
        """The run's place in it."""
        key = self._key(run)
        return Place(run, self.folder, key, tuple(self._files.get(key, ())), self.margin)

    def tidy(self, runs: Iterable[RunDir]) -> None:
        """Removes what was kept of runs that are no longer there, and tells backups to pass the folder over."""
        tag = self.folder / "CACHEDIR.TAG"
        with suppress(OSError):
            if self.folder.is_dir() and not tag.exists():
                write_whole(tag, _TAG)
        there = {self._key(run) for run in runs}
        for key, files in self._files.items():
            if key not in there:
                _remove(files)

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        with suppress(OSError):
            for file in sorted(self.folder.iterdir()):
                if file.suffix == ".parquet" and file.name.count("-") == 2:
                    found.setdefault(file.name.partition("-")[0], []).append(file)
        return found

    def _key(self, run: RunDir) -> str:
        return hashlib.sha256(os.fsencode(run.path.relative_to(self.root))).hexdigest()[:_HEX]


@dataclass(frozen=True)
class Place:
    """What is kept of one run.

    Attributes:
        run: the run.
        folder: the cache's.
        key: what its files' names begin with.
        files: those that are there.
        margin: that of the cache.
    """

    run: RunDir
    folder: Path
    key: str
    files: tuple[Path, ...]
    margin: float

    def contents(self) -> Contents | None:
        """What `read_contents` gave; None where something has changed since, or it was not kept."""
        now = _stamp(self.run)
        for file in self.files:
            if now is not None and file.name.split("-")[1] == now[0]:
                with suppress(Exception):
                    return _unpacked(_sound(file))
        return None

    def read(self) -> Contents:
        """What `read_contents` gives, which is kept."""
        before = _stamp(self.run)
        found = read_contents(self.run)
        if found.is_whole and before is not None and before == _stamp(self.run) and self._settled(before[1]):
            self._keep(before[0], found)
        return found

    def _settled(self, latest: int) -> bool:
        return time.time_ns() - latest >= self.margin * 1e9

    def _keep(self, stamp: Stamp, found: Contents) -> None:
        with suppress(OSError, pa.ArrowException, OverflowError):
            content = _packed(found)
            file = self.folder / f"{self.key}-{stamp}-{_digest(content)}.parquet"
            write_whole(file, content)
            _remove(other for other in self.files if other != file)


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink()


# ---- whether it is as it was


def _stamp(run: RunDir) -> tuple[Stamp, int] | None:
    """A hash of the run's records by name, size and times, and of what reads them; and the latest of the times. None
    where they cannot be looked at.
    """
    try:
        files = [run.config_file, run.status_file, run.manifest_file, run.metrics_file]
        folder = run.path / "evaluate"
        files += sorted(folder.iterdir()) if folder.is_dir() else []
        seen = [(file.name, file.stat()) for file in files if file.is_symlink() or file.exists()]
    except (OSError, RuntimeError):
        return None
    told = [(name, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns) for name, of in seen]
    content = json.dumps([_version(), told])
    latest = max((max(of.st_mtime_ns, of.st_ctime_ns) for _, of in seen), default=0)
    return hashlib.sha256(content.encode()).hexdigest()[:_HEX], latest


@lru_cache(maxsize=1)
def _version() -> str:
    """A hash of the code that reads records, and of this: no number to forget to raise."""
    sources = [inspect.getsource(module) for module in (*_READERS, inspect.getmodule(_version)) if module]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_HEX]


def _sound(file: Path) -> bytes:
    content = file.read_bytes()
    if _digest(content) != file.stem.split("-")[2]:
        raise ValueError("is damaged")
    return content


# ---- as Parquet: one row


def _packed(found: Contents) -> bytes:
    every = found.evaluations
    row: dict[str, Any] = {
        "row": pa.array([json.dumps(found.row)]),
        "training_step": _list(found.training.step),
        "training_values": _list(found.training.values.ravel()),
        "evaluation_step": _list(np.array([one.step for one in every], dtype=np.int64)),
        "evaluation_size": _list(np.array([len(one.problem) for one in every], dtype=np.int64)),
        "benchmark": _list(pa.array([name for one in every for name in one.benchmark], pa.string())),
        "problem": _list(pa.array([name for one in every for name in one.problem], pa.string())),
        "k": _list(_joined([one.k for one in every], np.int64)),
        "scores": _list(_joined([one.scores.ravel() for one in every], np.float64)),
        "examples": pa.array([json.dumps([asdict(example) for one in every[-1:] for example in one.examples])]),
    }
    out = io.BytesIO()
    pq.write_table(pa.table(row), out, compression="zstd")
    return out.getvalue()


def _unpacked(content: bytes) -> Contents:
    table = pq.read_table(io.BytesIO(content), use_threads=False)
    array = {name: table[name].combine_chunks() for name in table.column_names}
    value = {name: column.flatten() for name, column in array.items() if name not in ("row", "examples")}
    sizes, problems = value["evaluation_size"].to_pylist(), value["problem"].to_pylist()
    benchmarks, k, points = value["benchmark"].to_pylist(), value["k"].to_numpy(), value["scores"].to_numpy()
    every, start = [], 0
    for step, size in zip(value["evaluation_step"].to_pylist(), sizes, strict=True):
        end = start + size
        own = points[start * len(SCORES) : end * len(SCORES)].reshape(len(SCORES), size)
        every.append(Evaluation(step, benchmarks[start:end], problems[start:end], k[start:end], own, []))
        start = end
    examples = [Example(**example) for example in json.loads(array["examples"][0].as_py())]
    if every:
        every[-1].examples.extend(examples)
    return Contents(
        row=json.loads(array["row"][0].as_py()),
        training=Training(
            value["training_step"].to_numpy(),
            value["training_values"].to_numpy().reshape(len(TRAINING_COLUMNS), -1),
            torn=False,
        ),
        evaluations=every,
    )


def _list(values: np.ndarray | pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), pa.array(values))


def _joined(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=kind), *parts]).astype(kind)
