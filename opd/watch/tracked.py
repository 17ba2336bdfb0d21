"""What every tracker is: told of a run's metrics as it records them."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from opd.config import identity


class Tracker:
    """Receives the lines of metrics.jsonl and the pages of rollouts; this one ignores them."""

    def begin(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Called once, before anything else: `lines` are all that the run has recorded up to where it begins or goes
        on. A tracker that may have been told of more, or of less, shows these instead.
        """

    def log(self, line: Mapping[str, Any]) -> None: ...

    def page(self, step: int, html: str) -> None: ...

    def finish(self, failed: bool) -> None: ...

    def abandon(self) -> None:
        """Called after a failure: nothing else will be called."""


def tracked_id(content: Mapping[str, Any]) -> str:
    """A run's id with trackers: a hash of its study and run id."""
    return hashlib.sha256(f"{content['study']}/{identity.run_id(content)}".encode()).hexdigest()[:16]


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line by name, without its step: for trackers that know no missing ones."""
    return {
        name: float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
