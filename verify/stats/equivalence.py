"""A mean of few independent values: its interval, and whether it lies within bounds (TOST)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit

from verify.stats.binomial import Interval
from verify.stats.search import least


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's confidence interval for the mean of independent, about normal values.

    Raises:
        ValueError: there are fewer than two values, or `level` does not lie between 0 and 1.

    >>> low, high = mean_interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    mean, error, freedom = _mean(values)
    if not 0 < level < 1:
        raise ValueError(f"want a level between 0 and 1, got {level}")
    reach = float(stdtrit(freedom, (1 + level) / 2)) * error
    return Interval(mean - reach, mean + reach)


def tost(values: Sequence[float], low: float, high: float) -> float:
    """The p-value of two one-sided t-tests (Schuirmann 1987) that a mean lies between `low` and `high`.

    The null hypothesis is that it does not. p <= alpha is the same as an interval of level 1 - 2 alpha within the
    bounds.

    Args:
        values: independent, about normal.
        low: the lower bound.
        high: the upper bound.

    Raises:
        ValueError: there are fewer than two values, or not low < high.

    >>> round(tost([1.0, 2.0, 3.0], -4.0, 8.0), 4)
    0.0046
    """
    if not low < high:
        raise ValueError(f"want low < high, got {low} and {high}")
    mean, error, freedom = _mean(values)
    if error == 0:
        return 0.0 if low < mean < high else 1.0
    return float(max(stdtr(freedom, (low - mean) / error), stdtr(freedom, (mean - high) / error)))


def values_needed(sd: float, margin: float, alpha: float = 0.05, power: float = 0.9) -> int:
    """How many values of this standard deviation `tost` needs for bounds of +-margin, where the true mean is 0.

    The sample size of Julious (2004), with the quantiles of t.

    Raises:
        ValueError: not sd >= 0, or not margin > 0.

    >>> values_needed(0.05, 0.02)
    70
    """
    if not (sd >= 0 and margin > 0 and math.isfinite(sd / margin)):
        raise ValueError(f"want sd >= 0 and margin > 0, got {sd} and {margin}")

    def enough(n: int) -> bool:
        quantiles = stdtrit(n - 1, 1 - alpha) + stdtrit(n - 1, (1 + power) / 2)
        return bool(n >= (float(quantiles) * sd / margin) ** 2)

    return least(enough, 2)


def _mean(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, its standard error, degrees of freedom."""
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or len(found) < 2 or not np.isfinite(found).all():
        raise ValueError("want at least two numbers")
    return float(found.mean()), float(found.std(ddof=1)) / math.sqrt(len(found)), len(found) - 1
