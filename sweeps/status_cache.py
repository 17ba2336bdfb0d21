"""Status and last metrics of runs, with those of finished runs cached.

`.sweep/finished.json` keeps them with the size and time of `status.json`, so that the state of a study of thousands of
runs is known without reading them all.
"""

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opd.records.files import RecordError, as_record, read_json, write_atomic
from opd.records.run_dir import RunDir, Status

_IN_TABLE = re.compile(r"divergence/reverse_kl|entropy/student|evaluate/(mean|best)@\d+")


class StatusCache:
    """The runs of a study; an unchanged `status.json` of a finished run is not read again."""

    def __init__(self, study: Path) -> None:
        self._study, self._file, self._changed = str(study), study / ".sweep" / "finished.json", False
        self._cached: dict[str, list[Any]] = {}
        with suppress(RecordError):
            self._cached = read_json(self._file)

    def status(self, run: str) -> Status | None:
        """A run's status; None before it has written one.

        Raises:
            RecordError: for a status that cannot be read.
        """
        try:
            now = os.stat(f"{self._study}/{run}/status.json")
        except (FileNotFoundError, NotADirectoryError):
            return None
        stamp = [now.st_size, now.st_mtime_ns]
        with suppress(LookupError, TypeError, RecordError):  # not cached, or by another version
            if self._cached[run][0] == stamp:
                return as_record(Status, self._cached[run][1], str(self._file))
        status = RunDir(Path(self._study, run)).status()
        if status.state == "finished":
            self._cached[run] = [stamp, asdict(status), _for_table(self.last_metrics(run))]
            self._changed = True
        return status

    def metrics(self, run: str, status: Status) -> dict[str, float]:
        """The metrics in the table of `sweeps.status`, of a run whose `status` was read from here."""
        with suppress(LookupError, AttributeError):
            if status.state == "finished":
                return _for_table(self._cached[run][2])
        return _for_table(self.last_metrics(run))

    def last_metrics(self, run: str, tail: int = 16_384) -> dict[str, Any]:
        """The last complete line of a run's metrics; empty without one."""
        try:
            # Without waiting for a writer, where a pipe is in its place.
            handle = os.open(f"{self._study}/{run}/metrics.jsonl", os.O_RDONLY | os.O_NONBLOCK)
            with open(handle, "rb") as lines:
                end = lines.seek(0, os.SEEK_END)
                lines.seek(max(0, end - tail))
                text = lines.read()
            stop = text.rfind(b"\n")
            line = json.loads(text[text.rfind(b"\n", 0, max(stop, 0)) + 1 : stop]) if stop >= 0 else {}
            return line if isinstance(line, dict) else {}
        except (OSError, ValueError, RecursionError):
            return {}

    def save(self) -> None:
        """Write the cache, where that is allowed."""
        if self._changed:
            with suppress(OSError):
                write_atomic(self._file, json.dumps(self._cached))


def _for_table(line: dict[str, Any]) -> dict[str, float]:
    shown = {key: shown_number(value) for key, value in line.items() if _IN_TABLE.fullmatch(key)}
    return {key: value for key, value in shown.items() if value is not None}


def shown_number(value: Any) -> float | None:
    """A recorded number; None for anything else, or one that no run writes."""
    return value if type(value) in (int, float) and abs(value) <= 2**53 else None
