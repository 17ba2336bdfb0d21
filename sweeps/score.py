"""How good a run is, by its records alone: the metric that decides a sweep."""

import math
import re
from pathlib import Path

from opd.errors import UserError
from opd.records.run_dir import RunDir

_METRIC = re.compile(r"((?:mean|best|maj)@[1-9][0-9]*) (max|last)")


def parse(metric: str) -> tuple[str, str]:
    """`mean@8 last` → the name in the records, `evaluate/mean@8`, and which of a run's evaluations counts.

    Raises:
        UserError: for anything else.
    """
    found = _METRIC.fullmatch(metric)
    if found is None:
        raise UserError(
            f"metric={metric}: is no metric; give mean@K, best@K or maj@K, then max or last, as 'mean@8 last'"
        )
    return f"evaluate/{found[1]}", found[2]


def score(folder: Path, metric: str, *, until: float = math.inf) -> float:
    """A run's largest (`max`) or latest (`last`) evaluation up to and with step `until`; NaN where it has none.

    Raises:
        RecordError: for metrics that cannot be read.
    """
    key, which = parse(metric)
    lines = [line for line in RunDir(folder).metrics() if line["step"] <= until]
    found = [line[key] for line in lines if line.get(key) is not None]
    return math.nan if not found else max(found) if which == "max" else found[-1]


def mean(values: list[float]) -> float:
    """The mean over seeds; NaN where one is missing, for a mean of fewer would be another figure."""
    return math.fsum(values) / len(values) if values else math.nan
