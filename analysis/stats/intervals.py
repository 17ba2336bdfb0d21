"""The mean of scores over seeds and problems, with its uncertainty: variance components and Student's t."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

_EXACT = 12  # decimals; smaller differences are rounding


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and degrees of freedom, one of each a metric.

    Attributes:
        value: the mean.
        error: its standard error.
        df: the degrees of freedom of Student's t.
        between_seeds: the part of the squared error that falls as 1 / seeds: differences between seeds, and the noise
            of the answers.
        between_problems: the part of it that more seeds do not reduce.
        problems: the number of problems.
    """

    value: Float[np.ndarray, " metric"]
    error: Float[np.ndarray, " metric"]
    df: Float[np.ndarray, " metric"]
    between_seeds: Float[np.ndarray, " metric"]
    between_problems: Float[np.ndarray, " metric"]
    problems: int

    def one(self, metric: int) -> "Estimate":
        """The estimate of one metric."""
        arrays = {name: each[metric : metric + 1] for name, each in vars(self).items() if name != "problems"}
        return replace(self, **arrays)

    def interval(self, level: float, *, shares: Sequence[bool] | bool = False) -> Float[np.ndarray, "2 metric"]:
        """value ± t · error, t the (1 + level) / 2 quantile.

        A share that does not vary, all right or all wrong, has no error that could be estimated: it gets the exact
        reach of n of n right, 1 - ((1 - level) / 2)^(1 / n), n the number of problems (Clopper and Pearson, 1934).
        """
        reach = _quantile(self.df, (1 + level) / 2) * self.error
        exact = 1 - ((1 - level) / 2) ** (1 / self.problems)
        saturated = (self.error == 0) & np.isin(self.value, (-1, 0, 1)) & np.asarray(shares)
        reach = np.where(saturated, exact, reach)
        return np.round(np.stack([self.value - reach, self.value + reach]), _EXACT)

    def p_above(self, bound: float) -> Float[np.ndarray, " metric"]:
        """The chance of a mean this high if the true one is at most `bound`; NaN without an error."""
        return _tail(self.df, -self._standardized(bound))

    def p_below(self, bound: float) -> Float[np.ndarray, " metric"]:
        """The chance of a mean this low if the true one is at least `bound`; NaN without an error."""
        return _tail(self.df, self._standardized(bound))

    def p_two_sided(self) -> Float[np.ndarray, " metric"]:
        """The chance of a mean this far from 0 if the true one is 0."""
        return 2 * _tail(self.df, -np.abs(self._standardized(0)))

    def _standardized(self, bound: float) -> np.ndarray:
        """The distance in standard errors; where nothing varies, infinite unless it is 0."""
        away = np.round(self.value - bound, _EXACT)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(away == 0, 0 * self.error, away / self.error)


@dataclass(frozen=True)
class Block:
    """The variance components of one benchmark. Sides are sets of runs whose seeds are drawn independently.

    Attributes:
        by_seed: of each side, its signed score by seed, "metric seed".
        noise: of each side, the residual variance of one seed on one problem, over the number of its seeds; 0 with one
            seed, where it cannot be estimated.
        between: the variance over problems of the signed sum of the sides' means.
        problems: how many there are.
    """

    by_seed: Sequence[Float[np.ndarray, "metric _"]]
    noise: Sequence[Float[np.ndarray, " metric"]]
    between: Float[np.ndarray, " metric"]
    problems: int


def block(sides: Sequence[Float[np.ndarray, "metric _ problem"]]) -> Block:
    """The signed scores of each side on one benchmark's problems, which all sides share."""
    by_problem = [side.mean(axis=1) for side in sides]
    noise = []
    for side, problem in zip(sides, by_problem, strict=True):
        _, seeds, problems = side.shape
        if seeds < 2 or problems < 2:
            noise.append(np.zeros(len(side)))
            continue
        rest = side - problem[:, None] - side.mean(axis=2, keepdims=True) + problem.mean(axis=1)[:, None, None]
        noise.append((rest**2).sum(axis=(1, 2)) / ((seeds - 1) * (problems - 1)) / seeds)
    return Block(
        by_seed=[side.mean(axis=2) for side in sides],
        noise=noise,
        between=_variance(np.sum(by_problem, axis=0)),
        problems=sides[0].shape[2],
    )


def estimate(blocks: Sequence[Block]) -> Estimate:
    """The unweighted mean over benchmarks of the sides' signed sum, its seeds and problems both drawn from many.

    A score is mean + seed + problem + rest, each with a variance of its own. For S seeds on P problems, with the mean
    squares' estimates of Var(mean over seeds) / S = A, Var(mean over problems) / P = B and Var(rest) / SP = C, the
    error's square is max(A, B, A + B - C): A and B both hold C.

    The degrees of freedom are those of the seeds alone, S - 1, however small their part of the error: the cautious
    choice. What is bolder, such as Cochran and Cox's weighted quantile (Experimental Designs, 1957), is right at one
    level and wrong at the levels that a correction for many claims asks for (docs/coverage.md). Of two sides, which
    draw their seeds apart, they are Satterthwaite's, pooled over the sides, and no more than if the spreads were equal:
    where two seeds happen to agree, their side looks exact, and one with many would lend it all of its own. With one
    seed a side they are the problems'.

    A side with one seed adds nothing to A: the interval then holds for this seed, and says nothing about others.
    An error of fewer than two problems is NaN.
    """
    weight = 1 / len(blocks)
    sides = range(len(blocks[0].by_seed))
    by_seed = [np.sum([weight * each.by_seed[side] for each in blocks], axis=0) for side in sides]
    seeds = [_variance(side) / side.shape[1] if side.shape[1] > 1 else np.zeros(len(side)) for side in by_seed]
    problems = [weight**2 * each.between / each.problems for each in blocks]
    rest = np.sum([weight**2 * np.sum(each.noise, axis=0) / each.problems for each in blocks], axis=0)
    a, b = np.sum(seeds, axis=0), np.sum(problems, axis=0)
    variance = np.maximum(np.maximum(a, b), a + b - rest)
    own = [(part, side.shape[1] - 1) for part, side in zip(seeds, by_seed, strict=True) if side.shape[1] > 1]
    own = own or [(part, each.problems - 1) for part, each in zip(problems, blocks, strict=True)]
    return Estimate(
        value=np.round(np.sum([side.mean(axis=1) for side in by_seed], axis=0), _EXACT),
        error=np.round(np.sqrt(variance), _EXACT),
        df=_pooled_df(own),
        between_seeds=np.maximum(a, rest),
        between_problems=np.maximum(b - rest, 0),
        problems=sum(each.problems for each in blocks),
    )


def _variance(values: np.ndarray) -> np.ndarray:
    """Over the last axis, unbiased; NaN of fewer than two."""
    size = values.shape[-1]
    return values.var(axis=-1, ddof=1) if size > 1 else np.full(values.shape[:-1], np.nan)


def _pooled_df(parts: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """Satterthwaite's degrees of freedom of a sum of the variances of means, at most those of equal spreads, where the
    variances are as 1 / (df + 1).
    """
    fewest = max(min(df for _, df in parts), 1)
    alike = _satterthwaite([(np.array(1 / (df + 1)), df) for _, df in parts])
    total = np.sum([part for part, _ in parts], axis=0)
    return np.where(total > 0, np.minimum(_satterthwaite(parts), alike), fewest)


def _satterthwaite(parts: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """(sum v)² / sum (v² / df)."""
    total = np.sum([part for part, _ in parts], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return total**2 / np.sum([np.square(part) / max(df, 1) for part, df in parts], axis=0)


def _tail(df: np.ndarray, value: np.ndarray) -> np.ndarray:
    from scipy.special import stdtr

    return stdtr(df, value)


def _quantile(df: np.ndarray | float, probability: float) -> np.ndarray:
    from scipy.special import stdtrit

    return stdtrit(df, probability)
