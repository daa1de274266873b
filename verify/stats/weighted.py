"""Tails of a weighted sum of coins: exact for whole weights, bounded and estimated for any.

Under the null, T = sum a_i (H_i - C rate) with the hits H_i of pair i: how many of its C independent coins come up,
each with probability `rate`. The weights a_i do not depend on the secret; the coins of one pair weigh the same. T has
the mean 0 and the variance C rate (1 - rate) sum a_i^2, and its cumulant function is known exactly, so every tail below
is a statement about this T and no other.

Every tail is computed from the shortfall D = M - T, where M is the largest value of T: D is a sum of the sizes |a_i|
of the coins that fell the worse way, so that nothing cancels even where the tilt makes almost every coin certain. A
tail is finite and at most 0 for every observation. What cannot be observed (T > M) has no logarithm: ValueError.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, log_expit, log_ndtr, logsumexp

from verify.stats.binomial import LN10

Floats = npt.NDArray[np.float64]

TILTS: Final = np.geomspace(0.02, 5.0, 32)
"""What mixtures mix: log odds of a coin for a unit of weight, each with the same prior weight."""

_ROUNDING: Final = 1e-14  # what the sum T may have lost or gained by rounding, relative to the sum of |a|
_DIRECT: Final = 1 << 26  # multiplications up to which a convolution is done without the Fourier transform


class _Shortfall(NamedTuple):
    """D = sum sizes_i B_i with independent coins B_i, and the bound `gap` that stands against it: T >= t is D <= gap.

    numbers: how many coins are of each kind, [n], or [1] for as many of each; sizes: positive, [n]; logits: log odds of
    B_i = 1, [n].
    """

    numbers: Floats
    sizes: Floats
    logits: Floats
    gap: float


def _shortfall(weights: Floats, t: float, rate: float, coins: int) -> tuple[_Shortfall, float]:
    """T >= t, seen from the largest value of T, and the unit (the largest |a|) in which sizes and gap are measured."""
    logit = _logit(rate)
    if not (math.isfinite(t) and np.isfinite(weights).all()):
        raise ValueError("weights and T are finite numbers")
    weights = weights[weights != 0]
    unit = float(np.abs(weights).max(initial=0.0))
    sizes = np.abs(weights) / (unit or 1.0)
    logits = np.where(weights > 0, -logit, logit)
    total, most, t = coins * float(sizes.sum()), coins * float((sizes * expit(logits)).sum()), t / (unit or 1.0)
    if t > most + 1e-9 * total:
        raise ValueError("T is larger than these weights can make it")
    return _Shortfall(np.full(1, float(coins)), sizes, logits, max(0.0, most - t) + _ROUNDING * total), unit


def _logit(rate: float) -> float:
    if not 1e-6 <= rate <= 1 - 1e-6:
        raise ValueError(f"a chance between 1e-6 and 1 - 1e-6 is wanted, not {rate}")
    return math.log(rate) - math.log1p(-rate)


def z_score(weights: Floats, t: float, rate: float, coins: int = 1) -> float:
    """T over its exact null standard deviation; 0 without a weight. For the eye: no p-value comes from it."""
    unit = float(np.abs(weights).max(initial=0.0))
    if unit == 0:
        return 0.0
    sizes = weights / unit
    return t / unit / math.sqrt(coins * rate * (1 - rate) * float(sizes @ sizes))


def chernoff_log10_sf(weights: Floats, t: float, rate: float, coins: int = 1) -> float:
    """A guaranteed upper bound of log10 P(T >= t): K(s) - s t at the s >= 0 that makes it least, or nearly so.

    Every s gives a bound, so that rounding in the search for the best costs a little power and no validity; t is
    lowered by what rounding may have added to it.

    Args:
        weights: float64 [n], fixed before any of the coins was seen.
        t: observed T.
        rate: the chance that a coin comes up.
        coins: how many a pair has.

    Raises:
        ValueError: weights or t are not finite, t is larger than T can be, or rate is not within [1e-6, 1 - 1e-6].

    >>> round(chernoff_log10_sf(np.array([3.0, 1.0, -0.5]), 3.125, 0.25), 6) == round(math.log10(0.25**2 * 0.75), 6)
    True
    """
    shortfall, _ = _shortfall(weights, t, rate, coins)
    return min(0.0, _exponent(shortfall, _tilt(shortfall))) / LN10


def mixture_log10_sf(weights: Floats, t: float, rate: float, coins: int = 1) -> float:
    """log10 of one over the mixture e-value of T: a guaranteed p-value under weaker conditions than Chernoff's bound.

    The weights may depend on coins that were seen before their own: exp(h T - K(h)) has mean 1 even then for every
    h that is fixed beforehand, and so has the mixture over TILTS. Arguments and errors as of `chernoff_log10_sf`.
    """
    shortfall, unit = _shortfall(weights, t, rate, coins)
    logs = np.array([-_exponent(shortfall, h * unit) for h in TILTS.tolist()])
    return min(0.0, math.log(len(TILTS)) - float(logsumexp(logs))) / LN10


def saddlepoint_log10_sf(weights: Floats, t: float, rate: float, coins: int = 1) -> float:
    """An estimate of log10 P(T >= t): Barndorff-Nielsen's form of the Lugannani-Rice formula (1980, 1986).

    Close to the truth where many weights matter; not guaranteed. It is kept between two bounds that are: Chernoff's,
    and the probability that the largest coins, as many as T >= t may need, all fall the better way. Arguments and
    errors as of `chernoff_log10_sf`.
    """
    least = coins * float(np.where(weights > 0, -rate * weights, (1 - rate) * weights).sum())
    if t <= least + _ROUNDING * abs(least):
        return 0.0
    sign = 1.0 if t >= 0 else -1.0  # below the mean, the tail on the other side is estimated
    shortfall, _ = _shortfall(sign * weights, sign * t, rate, coins)
    _, sizes, logits, gap = shortfall
    if not len(sizes):
        return 0.0
    s = _tilt(shortfall)
    p, q = expit(logits - s * sizes), expit(s * sizes - logits)
    variance = coins * float((sizes**2 * p * q).sum())
    bound = min(0.0, _exponent(shortfall, s))
    r, u = math.sqrt(-2 * bound), s * math.sqrt(variance)
    if u < 1e-6 * r:  # at an end of the distribution there is nothing to correct
        return bound / LN10 if sign > 0 else 0.0
    if r < 1e-3:  # the formula is 0 / 0 here; its limit holds the skewness
        star = r - coins * float((sizes**3 * p * q * (q - p)).sum()) / variance**1.5 / 6
    else:
        star = r + math.log(u / r) / r
    estimate = float(log_ndtr(-sign * star))
    if sign > 0:
        order = np.repeat(np.argsort(sizes), coins)
        needed = order[np.cumsum(sizes[order]) > gap]
        return min(bound, max(estimate, float(log_expit(-logits[needed]).sum()))) / LN10
    return min(0.0, max(estimate, math.log(-math.expm1(bound))) if bound < 0 else estimate) / LN10


def exact_log10_sf(counts: npt.NDArray[np.int64], hits: int, rate: float, coins: int = 1) -> float:
    """log10 P(sum counts_i H_i >= hits), exactly: by convolution of one binomial for each distinct count.

    Args:
        counts: int64 [n], positive.
        hits: the observed sum.
        rate: the chance that a coin comes up.
        coins: how many a pair has.

    Raises:
        ValueError: a count is not positive, hits is larger than `coins` times the sum of the counts, or rate is not
            within [1e-6, 1 - 1e-6].

    >>> round(10 ** exact_log10_sf(np.array([2, 1, 1]), 3, 0.5), 12)  # three of eight colourings
    0.375
    """
    logit, total = _logit(rate), coins * int(counts.sum())
    if counts.min(initial=1) < 1 or hits > total:
        raise ValueError(f"want positive counts and at most their sum of hits, got {hits} of {total}")
    if hits <= 0:
        return 0.0
    values, numbers = np.unique(counts, return_counts=True)
    numbers = coins * numbers
    if hits > rate * total:
        return min(0.0, _ln_at_most(values, numbers, -logit, total - hits)) / LN10
    return min(0.0, math.log1p(-math.exp(_ln_at_most(values, numbers, logit, hits - 1)))) / LN10


def _ln_at_most(values: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64], logit: float, gap: int) -> float:
    """ln P(D <= gap) for the sum D of coins of log odds `logit`, `numbers` of them worth each of the `values`.

    The distribution is tilted to have its mean at `gap` before, and untilted after, so that rounding is relative to
    the tail that is asked for and not to 1. The binomials are convolved from the largest value to the smallest, each
    on the lattice that the values so far have in common: off it, the Fourier transform would leave noise.
    """
    within = values <= gap
    certain = float(numbers[~within].sum() * log_expit(-logit))  # these must not be in D
    values, numbers = values[within], numbers[within]
    if not len(values):
        return certain
    sizes = values.astype(np.float64)
    shortfall = _Shortfall(numbers.astype(np.float64), sizes, np.full(len(sizes), logit), float(gap))
    s = _tilt(shortfall)
    lowest, step, tilted = 0, 0, np.ones(1)
    for value, number in zip(values[::-1].tolist(), numbers[::-1].tolist(), strict=True):
        low, pmf = _binomial_pmf(number, logit - s * value)
        common = math.gcd(step, value)
        tilted = _convolve(_spread(tilted, step // common), _spread(pmf, value // common))
        lowest, step = lowest + value * low, common
    tilted = tilted[: (gap - lowest) // step + 1]
    reached = np.flatnonzero(tilted > 0)  # the Fourier transform's noise has either sign
    ln_tail = float(logsumexp(np.log(tilted[reached]) - s * (gap - lowest - step * reached)))
    return certain + ln_tail + _exponent(shortfall, s)


def _spread(pmf: Floats, step: int) -> Floats:
    """Probabilities of 0, 1, 2, ... as those of 0, step, 2 step, ... on a lattice of step 1."""
    if len(pmf) == 1:
        return pmf
    spread = np.zeros(step * (len(pmf) - 1) + 1)
    spread[::step] = pmf
    return spread


def _binomial_pmf(n: int, logit: float) -> tuple[int, Floats]:
    """The part of a binomial distribution that matters: its first number of successes, the probabilities from there on.

    What is left out lies 12 standard deviations and 40 successes from the mean: less than 1e-30.
    n: number of coins; logit: log odds of a success, which stay exact where the probability rounds to 0 or 1.
    """
    p, q = float(expit(logit)), float(expit(-logit))
    reach = 12 * math.sqrt(n * p * q) + 40
    k = np.arange(max(0, math.floor(n * p - reach)), min(n, math.ceil(n * p + reach)) + 1)
    steps = np.log((n - k[:-1]) / k[1:]) + logit  # from each probability to the next
    ln = np.concatenate([[0.0], np.cumsum(steps)])
    pmf = np.exp(ln - ln.max())
    return int(k[0]), pmf / pmf.sum()


def _convolve(a: Floats, b: Floats) -> Floats:
    if len(a) * len(b) <= _DIRECT:
        return np.convolve(a, b)
    length = len(a) + len(b) - 1
    size = 1 << (length - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size), size)[:length]


def _exponent(shortfall: _Shortfall, s: float) -> float:
    """K(s) - s t, in nats, with the cumulant function K of T: ln E exp(-s D) + s gap."""
    numbers, sizes, logits, gap = shortfall
    return float((numbers * np.log1p(expit(logits) * np.expm1(-s * sizes))).sum()) + s * gap


def _tilt(shortfall: _Shortfall) -> float:
    """The s >= 0 at which the tilted D has its mean at `gap`, which makes the exponent least; 0 for a gap beyond it."""
    numbers, sizes, logits, gap = shortfall
    heights = numbers * sizes

    def excess(s: float) -> float:
        return gap - float((heights * expit(logits - s * sizes)).sum())

    if excess(0.0) >= 0:
        return 0.0
    start, end = 0.0, 1 / float(sizes.max())
    while excess(end) < 0:  # ends: the mean of D falls to 0, and the gap is positive
        start, end = end, 2 * end
    return float(brentq(excess, start, end, xtol=1e-14 * end, rtol=1e-12, maxiter=500))
