"""Tails under a uniformly random permutation, in log space. numpy and scipy only, no I/O.

A matching of n hidden units of one model with units of another is a permutation pi (an injection into N units, where
the other has more). Under the null it is uniform; each function here answers log10 P(at least this much order).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, logsumexp

from verify.stats.binomial import LN10

Floats = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def fixed_points_log10_sf(k: int, n: int, total: int | None = None) -> float:
    """log10 P(at least k of n units are matched to the unit of their own index).

    Exact for a permutation: P = sum over j >= k of 1/j! times sum over i <= n - j of (-1)^i/i! (Montmort 1708). For an
    injection into `total` > n units the union bound C(n, k) (total - k)! / total!, which for a permutation is 1/k!.
    """
    if not 0 <= k <= n:
        raise ValueError(f"want 0 <= k <= n, got {k}, {n}")
    if k == 0:
        return 0.0
    if total is not None and total != n:
        if total < n:
            raise ValueError(f"{n} units cannot be matched into {total}")
        return min(0.0, _ln_choose(n, k) + math.lgamma(total - k + 1) - math.lgamma(total + 1)) / LN10
    share, term, deranged = 0.0, 1.0, []  # deranged[m]: the share of m items' permutations without a fixed point
    for m in range(min(n - k, 170) + 1):
        share += term
        term /= -(m + 1)
        deranged.append(share)
    scale, ratio = 0.0, 1.0  # ratio: k!/j!
    for j in range(k, n + 1):
        scale += ratio * deranged[min(n - j, len(deranged) - 1)]
        ratio /= j + 1
        if ratio < 1e-20 * scale:
            break
    return min(0.0, math.log(scale) - math.lgamma(k + 1)) / LN10


def ordered_log10_sf(k: int, n: int) -> float:
    """An upper bound of log10 P(n matched units hold an increasing subsequence of length k): C(n, k) / k!.

    The expected number of such subsequences. It says nothing below k of about e sqrt(n); the longest is near 2 sqrt(n)
    under the null (Vershik and Kerov 1977).
    """
    if not 0 <= k <= n:
        raise ValueError(f"want 0 <= k <= n, got {k}, {n}")
    return min(0.0, _ln_choose(n, k) - math.lgamma(k + 1)) / LN10


def longest_increasing(order: I64) -> int:
    """The length of the longest increasing subsequence of distinct numbers, int64 [n]."""
    ends: list[int] = []  # ends[i]: the least end of an increasing subsequence of length i + 1
    for value in order.tolist():
        place = bisect_left(ends, value)
        ends[place : place + 1] = [value]
    return len(ends)


def spearman(order: I64) -> float:
    """Spearman's rank correlation of distinct numbers with their places; 0 for fewer than two."""
    n = len(order)
    if n < 2:
        return 0.0
    gaps = np.argsort(np.argsort(order)) - np.arange(n)
    return 1 - 6 * float(gaps @ gaps) / (n * (n * n - 1.0))


def spearman_log10_sf(rho: float, n: int) -> float:
    """A guaranteed upper bound of log10 P(Spearman's rho of n ranks >= rho).

    The ranks of a uniform permutation are negatively associated (Joag-Dev and Proschan 1983, theorem 2.11). The terms
    of S = sum x_i y_pi(i) with x_i > 0 all rise in pi(i), the others all fall: within each half the moment generating
    function is at most that of independent ranks, and Cauchy and Schwarz join the halves:
    ln E exp(s S) <= 1/2 sum K(2 s x_i), K the cumulant function of one centred rank. Chernoff's bound with this
    has half the exponent of the normal tail near the middle, and is never below 1/n!.
    """
    if n < 2 or rho <= 0:
        return 0.0
    x = np.arange(n, dtype=np.float64) - (n - 1) / 2
    target = rho * float(x @ x)

    def exponent(s: float) -> float:
        return 0.5 * float(_rank_cumulant(2 * s * x, n).sum()) - s * target

    scale = math.sqrt(12) / n  # of one rank
    found = minimize_scalar(exponent, bounds=(0.0, 100 * scale), method="bounded", options={"xatol": 1e-9 * scale})
    return min(0.0, max(float(found.fun), -math.lgamma(n + 1))) / LN10


def _rank_cumulant(u: Floats, n: int) -> Floats:
    """ln of the mean of exp(u y) over the n centred ranks y: ln(sinh(n u / 2) / (n sinh(u / 2)))."""
    half = np.abs(u) / 2
    small = half * n < 1e-3
    h = np.where(small, 1.0, half)
    far = (n - 1) * h + np.log1p(-np.exp(-2 * n * h)) - np.log1p(-np.exp(-2 * h)) - math.log(n)
    return np.where(small, half**2 * (n * n - 1) / 6, far)


def spearman_log10_t(rho: float, n: int) -> float:
    """log10 of the one-sided t approximation for Spearman's rho, as Zhu et al. (2025) use it; never below 1/n!.

    Not guaranteed: close where p is not small, and without meaning in the far tail, where it falls below the
    probability of any single permutation.
    """
    if n < 3 or rho <= -1:
        return 0.0
    floor = -math.lgamma(n + 1) / LN10
    if rho >= 1:
        return floor
    value = rho * math.sqrt((n - 2) / ((1 - rho) * (1 + rho)))
    from scipy.stats import t as student_t  # a third of the time that `stillmark verify` takes to start

    ln = float(student_t.logsf(value, n - 2))
    return max(floor, ln / LN10) if math.isfinite(ln) else floor


def fisher_log10(log10_pvalues: Sequence[float]) -> float:
    """log10 of Fisher's combination of independent p-values: the tail of chi squared with two degrees each.

    Sound for p-values that are too large, discrete ones too. With m p-values of product e^-y it is
    e^-y sum over j < m of y^j/j!.
    """
    m = len(log10_pvalues)
    y = -math.fsum(log10_pvalues) * LN10
    if m == 0 or y <= 0:
        return 0.0
    j = np.arange(m)
    return min(0.0, float(logsumexp(j * math.log(y) - gammaln(j + 1))) - y) / LN10


def _ln_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
