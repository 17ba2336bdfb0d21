"""What runs say of themselves, at a glance: their status, and the last line of their metrics.

That of finished runs, which change no more, is kept in `.sweep/finished.json` with size and time of `status.json`: a
study of thousands is then looked at without being read.
"""

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opd.records.run_dir import RunDir, Status, write_whole

_SHOWN = re.compile(r"divergence/reverse_kl|entropy/student|evaluate/(mean|best)@\d+")


class Glances:
    """The runs of a study; a `status.json` that is as it was is not read again."""

    def __init__(self, study: Path) -> None:
        self._study, self._file, self._new = str(study), study / ".sweep" / "finished.json", False
        self._kept: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError):
            kept = json.loads(self._file.read_bytes())
            if isinstance(kept, dict):
                self._kept = kept

    def status(self, run: str) -> Status | None:
        """What a run last said of itself; None where it has said nothing.

        Raises:
            RecordError: for a status that cannot be read.
        """
        try:
            now = os.stat(f"{self._study}/{run}/status.json")
        except (FileNotFoundError, NotADirectoryError):
            return None
        stamp = [now.st_size, now.st_mtime_ns]
        with suppress(LookupError, TypeError):  # not kept, or by another version of this
            if self._kept[run][0] == stamp and isinstance(self._kept[run][2], dict):
                return Status(**self._kept[run][1])
        status = RunDir(Path(self._study, run)).status()
        if status.state == "finished":
            self._kept[run] = [stamp, asdict(status), shown(self.last(run))]
            self._new = True
        return status

    def metrics(self, run: str, status: Status) -> dict[str, float]:
        """The metrics that a table shows, of a run whose status was asked for."""
        return self._kept[run][2] if status.state == "finished" else shown(self.last(run))

    def last(self, run: str, tail: int = 16_384) -> dict[str, Any]:
        """The last whole line of a run's metrics; empty without one."""
        try:
            with open(f"{self._study}/{run}/metrics.jsonl", "rb") as lines:
                end = lines.seek(0, os.SEEK_END)
                lines.seek(max(0, end - tail))
                text = lines.read()
            stop = text.rfind(b"\n")
            found = json.loads(text[text.rfind(b"\n", 0, max(stop, 0)) + 1 : stop]) if stop >= 0 else {}
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    def keep(self) -> None:
        """Writes down what was found finished; where we may not write, the next look reads it again."""
        if self._new:
            with suppress(OSError):
                write_whole(self._file, json.dumps(self._kept))


def shown(line: dict[str, Any]) -> dict[str, float]:
    """Of a line of metrics those that a table shows."""
    return {key: value for key, value in line.items() if value is not None and _SHOWN.fullmatch(key)}
