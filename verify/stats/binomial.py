"""Exact tests, intervals and power. numpy and scipy only, no I/O.

Tail probabilities are computed in log space throughout, and stay finite where a double has long underflowed.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betainccinv, betaincinv

LN10: Final = math.log(10)

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A confidence interval, as SciPy names its ends."""

    low: float
    high: float


def binomial_log10_sf(successes: int, n: int, p: float) -> float:
    """log10 P(Bin(n, p) >= successes), to a relative accuracy of about 1e-12.

    The tail is the first term times a continued fraction of the incomplete beta function (DLMF 8.17.22),
    which converges fast on the far side of the mean; on the near side the complement is used. The first
    term is Loader's saddle-point form of the binomial density (Loader 2000), which does not cancel at large n.
    The result is finite and at most 0.

    Raises:
        ValueError: not 0 <= successes <= n, or not 0 < p < 1. More successes than trials are no observation: their
            tail would be 0, which has no logarithm.

    >>> round(binomial_log10_sf(40, 100, 0.25), 3)
    -3.163
    """
    if not (0 <= successes <= n and 0 < p < 1):
        raise ValueError(f"want 0 <= successes <= n and 0 < p < 1, got {successes}, {n}, {p}")
    if successes == 0:
        return 0.0
    if successes > n * p:
        return min(0.0, _ln_upper_tail(successes, n, p, 1 - p)) / LN10
    below = _ln_upper_tail(n - successes + 1, n, 1 - p, p)  # P(Bin < successes), seen from the other side
    return min(0.0, math.log1p(-math.exp(below))) / LN10  # 0.0, not -0.0


def _ln_upper_tail(k: int, n: int, p: float, q: float) -> float:
    """ln P(Bin(n, p) >= k) for 1 <= k <= n, best for k above n p. q: 1 - p, of which the smaller one is exact."""
    if k == n:
        return n * (math.log(p) if p < q else math.log1p(-q))
    return _ln_binomial_pmf(k, n, p, q) + math.log(q) + math.log(_beta_fraction(k, n - k + 1, p))


def _ln_binomial_pmf(k: int, n: int, p: float, q: float) -> float:
    """ln P(Bin(n, p) = k) for 0 < k < n; q: 1 - p."""
    return (
        _stirling_error(n)
        - _stirling_error(k)
        - _stirling_error(n - k)
        - _deviance(k, n * p)
        - _deviance(n - k, n * q)
        + 0.5 * math.log(n / (2 * math.pi * k * (n - k)))
    )


def _stirling_error(n: int) -> float:
    """ln n! less Stirling's formula for it."""
    if n < 16:
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - 0.5 * math.log(2 * math.pi)
    r = 1 / (n * n)
    return (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - r / 1188) * r) * r) * r) / n


def _deviance(x: float, mean: float) -> float:
    """x ln(x / mean) + mean - x, without cancellation near x = mean."""
    if abs(x - mean) >= 0.1 * (x + mean):
        return x * (math.log(x / mean) if x < 1e300 * mean else math.log(x) - math.log(mean)) + mean - x
    v = (x - mean) / (x + mean)
    total, term = (x - mean) * v, 2 * x * v
    for j in range(1, 1000):
        term *= v * v
        new = total + term / (2 * j + 1)
        if new == total:
            return new
        total = new
    raise ArithmeticError("the deviance series did not converge")  # |v| < 0.1: it does within ten terms


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction F with I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) F (Lentz's method)."""
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    fraction = d
    for m in range(1, 10_000_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 + step * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + step / c
            c = c if abs(c) > tiny else tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            return fraction
    raise ArithmeticError(f"the continued fraction did not converge at a={a}, b={b}, x={x}")


def binomial_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Clopper and Pearson's exact two-sided interval for a binomial proportion (Biometrika 1934).

    Raises:
        ValueError: not 0 <= successes <= n, or not 0 < level < 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
    tail = (1 - level) / 2
    upper = upper_limit(successes, n, tail)
    return Interval(float(betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0, upper)


def upper_limit(successes: int, n: int, tail: float = 0.05) -> float:
    """The one-sided exact upper limit of a binomial proportion at confidence 1 - tail.

    Raises:
        ValueError: not 0 <= successes <= n, or not 1e-100 <= tail < 1 (SciPy's inverse returns nan from about 1e-107).
    """
    if not (0 <= successes <= n and 1e-100 <= tail < 1):
        raise ValueError(f"want 0 <= successes <= n and 1e-100 <= tail < 1, got {successes}, {n}, {tail}")
    return float(betainccinv(successes + 1, n - successes, tail)) if successes < n else 1.0


def critical_value(n: int, p: float, alpha: float) -> int:
    """The smallest S with P(Bin(n, p) >= S) <= alpha; n + 1 if none is.

    Raises:
        ValueError: n < 0, or p or alpha is not between 0 and 1.
    """
    if not (n >= 0 and 0 < p < 1 and 0 < alpha < 1):
        raise ValueError(f"want n >= 0, 0 < p < 1 and 0 < alpha < 1, got {n}, {p}, {alpha}")
    low, high = 0, n + 1  # invariant: the tail at `low` exceeds alpha, at `high` it does not
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_log10_sf(middle, n, p) <= math.log10(alpha):
            high = middle
        else:
            low = middle
    return high


def detectable_rate(n: int, p: float, alpha: float, power: float = 0.9) -> float | None:
    """The success rate at which the exact test of rate p at level alpha rejects with this power.

    None if no rate is enough: n is too small for alpha.

    Raises:
        ValueError: n < 0, p or alpha is not between 0 and 1, or not 1e-100 <= power < 1.
    """
    if not 1e-100 <= power < 1:
        raise ValueError(f"want 1e-100 <= power < 1, got {power}")
    critical = critical_value(n, p, alpha)
    # P(Bin(n, r) >= critical) = I_r(critical, n - critical + 1)
    return float(betaincinv(critical, n - critical + 1, power)) if critical <= n else None
