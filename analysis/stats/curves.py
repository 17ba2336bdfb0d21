"""Statistics of a curve over training. NaN marks a missing value and is skipped; NaN is returned where none is left."""

import numpy as np
import pandas as pd
from jaxtyping import Float


def ema(values: Float[np.ndarray, " time"], *, alpha: float) -> Float[np.ndarray, " time"]:
    """Exponential moving average s_0 = x_0, s_t = alpha * x_t + (1 - alpha) * s_(t-1).

    A missing value (NaN) stays missing and the next one continues from the last s. alpha = 1 changes nothing.
    """
    smoothed = pd.Series(values, dtype=float).ewm(alpha=alpha, adjust=False, ignore_na=True).mean().to_numpy()
    return np.where(np.isnan(values), np.nan, smoothed)


def collapsed(scores: Float[np.ndarray, " time"], *, kept: float) -> bool:
    """Whether the last score is less than `kept` times the best one."""
    known = scores[~np.isnan(scores)]
    return bool(known.size > 1 and known[-1] < kept * known.max())


def drop_from_best(scores: Float[np.ndarray, " time"]) -> float:
    """The best score minus the last; 0 where the last is the best."""
    known = scores[~np.isnan(scores)]
    return float(known.max() - known[-1]) if known.size else float("nan")


def spikes(values: Float[np.ndarray, " time"], *, window: int, times: float) -> int:
    """Number of finite values above `times` the median of the up to `window` values before them.

    The median keeps one spike from hiding the next. A value with fewer than `window` / 2 predecessors is not judged.
    """
    known = pd.Series(values[~np.isnan(values)])
    median = known.rolling(window, min_periods=max(1, window // 2)).median().shift()
    return int((known > times * median).sum())


def drift(values: Float[np.ndarray, " time"], *, share: float) -> float:
    """Mean of the last `share` of a curve minus the mean of the `share` before it; NaN for fewer than two values.

    For the training KL: negative while it falls, positive once it rises again.
    """
    known = values[~np.isnan(values)]
    part = max(1, int(share * len(known)))
    if len(known) < 2 * part:
        return float("nan")
    return float(known[-part:].mean() - known[-2 * part : -part].mean())
