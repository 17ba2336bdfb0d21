"""The number of seeds that would settle a difference."""

import numpy as np

MOST = 1000  # seeds; more call for another experiment


def seeds_needed(
    difference: float,
    *,
    between_seeds: float,
    between_problems: float,
    seeds: int,
    df: float,
    alpha: float,
    power: float,
) -> int | None:
    """The fewest seeds an arm with which a true difference is significant with a chance of `power`; None if none do.

    The least S of at least 2 with |difference| >= (t_(1 - α/2) + t_power) · error, where error² is the part between
    seeds · seeds / S and the part between problems. More seeds do not reduce the second: a difference that is small
    beside it takes more problems. t has df · (S - 1) / (seeds - 1) degrees of freedom.

    Args:
        difference: how far the truth is from what it is tested against.
        between_seeds: the squared error's share between seeds at `seeds` seeds, as `Estimate.between_seeds`.
        between_problems: its share between problems, as `Estimate.between_problems`.
        seeds: how many seeds an arm the shares were estimated with, at least 2; of the arm with fewer.
        df: the degrees of freedom at these, as `Estimate.df`.
        alpha: the two-sided level of the test.
        power: the chance, above 0.5.
    """
    from scipy.special import stdtrit

    count = np.arange(2, MOST + 1)
    along, across = between_seeds * seeds / count, np.full(len(count), between_problems)
    freedom = df * (count - 1) / (seeds - 1)
    quantiles = stdtrit(freedom, 1 - alpha / 2) + stdtrit(freedom, power)
    enough = abs(difference) >= quantiles * np.sqrt(along + across)
    return int(count[enough.argmax()]) if enough.any() and difference else None
