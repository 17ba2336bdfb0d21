"""Smoothing of curves."""

import numpy as np
import pandas as pd
from jaxtyping import Float


def ema(values: Float[np.ndarray, " time"], *, alpha: float) -> Float[np.ndarray, " time"]:
    """Exponential moving average s_0 = x_0, s_t = alpha * x_t + (1 - alpha) * s_(t-1).

    A missing value (NaN) stays missing and the next one continues from the last s. alpha = 1 changes nothing.
    """
    smoothed = pd.Series(values, dtype=float).ewm(alpha=alpha, adjust=False, ignore_na=True).mean().to_numpy()
    return np.where(np.isnan(values), np.nan, smoothed)
