"""A cache of what was read of each run, one file a run, so that a folder of many runs is read again in seconds.

A file begins with a hash of its own bytes and of what it was made from: name, size and times of each record, and the
code that reads them. It is used only where that hash still holds. Runs with damaged records are not cached but read
again each time. The folder may be deleted at any time; where it cannot be written, nothing is cached.
"""

import hashlib
import inspect
import io
import json
import math
import os
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from analysis import columns, evaluation, json_lines, read_run, text, training
from analysis.evaluation import Evaluation, Example
from analysis.read_run import RunContents
from analysis.training import Training
from opd.config import plain_yaml
from opd.grading import scores
from opd.records import files as record_files, run_dir as records, texts
from opd.records.run_dir import RunDir, write_atomic

FOLDER = ".analysis"  # in the folder that is loaded; hidden, so that it is not searched for runs
SUFFIX = ".run"
_READERS = (columns, record_files, evaluation, json_lines, read_run, text, training, plain_yaml, records, scores, texts)
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Cache of analysis.report. Safe to delete.\n"
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Cache:
    """The cache of the runs under `root`.

    Attributes:
        root: the folder that is loaded.
        margin: seconds since the last change of a run's records before the run is cached: a second change within one
            tick of the file system's clock leaves no trace in its times.
    """

    root: Path
    margin: float = 2.0

    def get(self, run: RunDir) -> RunContents | None:
        """What `read_run.read_run` returned; None where the run is not cached or has changed since."""
        with suppress(Exception):  # whatever a missing or damaged file raises
            content = self._file(run).read_bytes()
            if content[:_DIGEST] == _hash(_stamp(run)[0], content[_DIGEST:]):
                return _unpack(content[_DIGEST:])
        return None

    def read(self, run: RunDir) -> RunContents:
        """What `read_run.read_run` returns, which is cached."""
        before = _stamp(run)
        contents = read_run.read_run(run)
        stamp, latest = before
        if contents.is_intact and before == _stamp(run) and time.time() - latest >= self.margin:
            with suppress(OSError):
                content = _pack(contents)
                write_atomic(self._file(run), _hash(stamp, content) + content)
        return contents

    def prune(self, runs: Iterable[RunDir]) -> None:
        """Removes the files of runs that are gone, and marks the folder as a cache for backup programs."""
        current, folder = {self._file(run) for run in runs}, self.root / FOLDER
        with suppress(OSError):
            tag = folder / "CACHEDIR.TAG"
            if folder.is_dir() and not tag.exists():
                write_atomic(tag, _TAG)
            for file in folder.iterdir():
                if file.suffix in (SUFFIX, ".parquet") and file not in current:  # .parquet: of earlier versions
                    file.unlink()

    def _file(self, run: RunDir) -> Path:
        path = os.fsencode(run.path.relative_to(self.root))
        return self.root / FOLDER / f"{hashlib.sha256(path).hexdigest()[:32]}{SUFFIX}"


def _hash(stamp: str, content: bytes) -> bytes:
    return hashlib.sha256(stamp.encode() + content).digest()


def _stamp(run: RunDir) -> tuple[str, float]:
    """The run's records by name, size and times, with the version of the code that reads them; and the latest time,
    infinite where they cannot be listed.
    """
    try:
        files = [run.config_file, run.status_file, run.manifest_file, run.metrics_file]
        folder = run.path / "evaluate"
        files += sorted(folder.iterdir()) if folder.is_dir() else []
        present = [(file.name, file.stat()) for file in files if file.is_symlink() or file.exists()]
    except (OSError, RuntimeError):
        return "", math.inf
    stats = [(name, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns) for name, of in present]
    return json.dumps([_version(), stats]), max((max(of.st_mtime, of.st_ctime) for _, of in present), default=0)


@lru_cache(maxsize=1)
def _version() -> str:
    """A hash of the code that reads records and of this module, so that no version number can be forgotten."""
    sources = [inspect.getsource(module) for module in (*_READERS, inspect.getmodule(_version)) if module]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def _pack(contents: RunContents) -> bytes:
    """A header in JSON, then arrays as `numpy.save` writes them, compressed."""
    every = contents.evaluations
    names = [(one.step, one.benchmark, one.problem, list(map(asdict, one.examples))) for one in every]
    header = json.dumps({"row": contents.row, "evaluations": names, "sets": contents.sets}).encode()
    arrays = [
        contents.training.step,
        contents.training.values,
        *(array for one in every for array in (one.k, one.scores)),
    ]
    out = io.BytesIO()
    for array in (np.frombuffer(header, dtype=np.uint8), *arrays):
        np.save(out, array, allow_pickle=False)
    return zlib.compress(out.getvalue(), level=1)


def _unpack(content: bytes) -> RunContents:
    file = io.BytesIO(zlib.decompress(content))

    def array() -> np.ndarray:
        return np.load(file, allow_pickle=False)

    header = json.loads(array().tobytes())
    return RunContents(
        row=header["row"],
        training=Training(array(), array(), torn=False),
        evaluations=[
            Evaluation(step, benchmark, problem, array(), array(), [Example(**example) for example in examples])
            for step, benchmark, problem, examples in header["evaluations"]
        ],
        sets=header["sets"],
    )
