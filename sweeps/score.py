"""A run's score by its records: the metric that decides a sweep."""

import math
import re
from pathlib import Path

from opd.errors import UserError
from opd.records.run_dir import RunDir

_METRIC = re.compile(r"((?:mean|best|maj)@[1-9][0-9]*) (max|last)")


def parse(metric: str) -> tuple[str, str]:
    """`mean@8 last` → its name in the records, `evaluate/mean@8`, and which of a run's evaluations counts.

    Raises:
        UserError: for anything else.
    """
    match = _METRIC.fullmatch(metric)
    if match is None:
        raise UserError(
            f"metric={metric}: is not a metric; give mean@K, best@K or maj@K, then max or last, as 'mean@8 last'"
        )
    return f"evaluate/{match[1]}", match[2]


def score(folder: Path, metric: str, *, until: float = math.inf) -> float:
    """A run's largest (`max`) or latest (`last`) evaluation up to step `until`, inclusive; NaN where it has none.

    Raises:
        RecordError: for metrics that cannot be read.
    """
    key, which = parse(metric)
    values = [line[key] for line in RunDir(folder).metrics() if line["step"] <= until and line.get(key) is not None]
    return math.nan if not values else max(values) if which == "max" else values[-1]


def mean(values: list[float]) -> float:
    """The mean over seeds; NaN where one is missing, since a mean over fewer seeds is not comparable."""
    return math.fsum(values) / len(values) if values else math.nan
