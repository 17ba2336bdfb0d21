"""How steadily a run trained, from its curves. A missing value (NaN) is passed over; what no value tells is NaN."""

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view


def collapsed(scores: Float[np.ndarray, " time"], *, kept: float) -> bool:
    """Whether the last score is less than `kept` of the highest before it: what was learned is lost again."""
    known = scores[~np.isnan(scores)]
    return bool(known.size > 1 and known[-1] < kept * known.max())


def fall(scores: Float[np.ndarray, " time"]) -> float:
    """The highest score minus the last: 0 where a run is at its best when it ends."""
    known = scores[~np.isnan(scores)]
    return float(known.max() - known[-1]) if known.size else float("nan")


def spikes(values: Float[np.ndarray, " time"], *, window: int, times: float) -> int:
    """How many values are more than `times` the median of the up to `window` values before them.

    The median, so that a spike does not hide the next one. A value with fewer than `window` / 2 before it is not
    judged.
    """
    known = values[~np.isnan(values)]
    first = range(max(1, window // 2), min(window, len(known)))
    before = [np.median(known[:t]) for t in first]
    if len(known) > window:
        before = [*before, *np.median(sliding_window_view(known[:-1], window), axis=1)]
    return int(np.count_nonzero(known[len(known) - len(before) :] > times * np.array(before)))


def drift(values: Float[np.ndarray, " time"], *, share: float) -> float:
    """The mean of the last `share` of a curve minus that of the `share` before them; NaN of fewer than two values.

    Of the train KL: below 0 where it still falls, above 0 where it turned.
    """
    known = values[~np.isnan(values)]
    part = max(1, int(share * len(known)))
    if len(known) < 2 * part:
        return float("nan")
    return float(known[-part:].mean() - known[-2 * part : -part].mean())
