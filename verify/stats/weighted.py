"""Tails of a weighted sum of green bits: exact for whole weights, bounded and estimated for any.

Under the null, T = sum a_i (G_i - gamma) with independent G_i ~ Bernoulli(gamma) and weights a_i that do not
depend on the secret. Its mean is 0, its variance gamma (1 - gamma) sum a_i^2, and its cumulant function is known
exactly, so every tail below is a statement about this T and no other.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, log_ndtr, logsumexp

from verify.stats.binomial import LN10

Floats = npt.NDArray[np.float64]

TILTS: Final = np.geomspace(0.02, 5.0, 32)
"""What mixtures mix: log odds of green for a unit of weight, each with the same prior weight."""

_STEEPEST: Final = 1e4  # largest tilt times the largest weight: beyond it no bound gets better by a digit
_DIRECT: Final = 1 << 26  # multiplications up to which a convolution is done without the Fourier transform


def z_score(weights: Floats, t: float, gamma: float) -> float:
    """T over its exact null standard deviation; 0 without a weight. For the eye: no p-value comes from it."""
    scale = math.sqrt(gamma * (1 - gamma) * float(weights @ weights))
    return t / scale if scale else 0.0


def chernoff_log10_sf(weights: Floats, t: float, gamma: float) -> float:
    """A guaranteed upper bound of log10 P(T >= t): K(s) - s t at the s >= 0 that makes it least, or nearly so.

    weights: float64 [n], fixed before any of the coins was seen; t: observed T; K: the exact cumulant function of T.
    Every s gives a bound, so that rounding in the search for the best costs a little power and no validity.
    """
    s = _tilt(weights, t, gamma)
    return min(0.0, _cumulant(weights, gamma, s) - s * t) / LN10 if s > 0 else 0.0


def mixture_log10_sf(weights: Floats, t: float, gamma: float) -> float:
    """log10 of one over the mixture e-value of T: a guaranteed p-value under weaker conditions than Chernoff's bound.

    The weights may depend on coins that were seen before their own: exp(h T - K(h)) has mean 1 even then for every
    h that is fixed beforehand, and so has the mixture over TILTS.
    """
    logs = np.array([h * t - _cumulant(weights, gamma, h) for h in TILTS.tolist()])
    return min(0.0, math.log(len(TILTS)) - float(logsumexp(logs))) / LN10


def saddlepoint_log10_sf(weights: Floats, t: float, gamma: float) -> float:
    """An estimate of log10 P(T >= t): Barndorff-Nielsen's form of the Lugannani-Rice formula (1980, 1986).

    Close to the truth where many weights matter; not guaranteed.
    """
    s = _tilt(weights, t, gamma, below=True)
    p = expit(s * weights + math.log(gamma / (1 - gamma)))
    variance = float((weights**2 * p * (1 - p)).sum())
    r = math.copysign(math.sqrt(max(0.0, 2 * (s * t - _cumulant(weights, gamma, s)))), s)
    u = s * math.sqrt(variance)
    if abs(u) < 1e-6 * abs(r):  # at an end of the distribution there is nothing to correct
        return -(r**2) / 2 / LN10 if r > 0 else 0.0
    if abs(r) < 1e-3:  # the formula is 0 / 0 here; its limit is Edgeworth's first correction
        if variance == 0:
            return 0.0
        skewness = float((weights**3 * p * (1 - p) * (1 - 2 * p)).sum()) / variance**1.5
        return math.log10(min(1.0, max(1e-300, 0.5 - (r + skewness / 6) / math.sqrt(2 * math.pi))))
    return float(log_ndtr(-(r + math.log(u / r) / r))) / LN10


def exact_log10_sf(counts: npt.NDArray[np.int64], green: int, gamma: float) -> float:
    """log10 P(sum counts_i G_i >= green), exactly: by convolution of one binomial for each distinct count.

    The distribution is tilted to have its mean at `green` before, and untilted after, so that rounding is
    relative to the tail that is asked for and not to 1.

    counts: int64 [n], positive; green: the observed sum.
    """
    if green <= 0:
        return 0.0
    total = int(counts.sum())
    if green > total:
        return -math.inf
    if green == total:
        return len(counts) * math.log10(gamma)
    s = _tilt(counts.astype(np.float64), green - gamma * total, gamma)
    parts, lowest = [], 0
    for value, number in zip(*np.unique(counts, return_counts=True), strict=True):
        p = float(expit(s * value + math.log(gamma / (1 - gamma))))
        low, pmf = _binomial_pmf(int(number), p)
        part = np.zeros(int(value) * (len(pmf) - 1) + 1)
        part[:: int(value)] = pmf
        parts.append(part)
        lowest += int(value) * low
    while len(parts) > 1:
        parts.sort(key=len, reverse=True)
        parts.append(_convolve(parts.pop(), parts.pop()))
    above = max(0, green - lowest)
    tilted = parts[0][above:]
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(tilted, 0)) - s * (np.arange(len(tilted)) + (lowest + above - green))
    cumulant = float(np.logaddexp(math.log1p(-gamma), math.log(gamma) + s * counts).sum())
    return min(0.0, float(logsumexp(tail)) + cumulant - s * green) / LN10


def _binomial_pmf(n: int, p: float) -> tuple[int, Floats]:
    """Where it is worth mentioning: the first number of successes, and the probabilities from there on.

    What is left out lies 12 standard deviations and 40 successes from the mean: less than 1e-30.
    """
    reach = 12 * math.sqrt(n * p * (1 - p)) + 40
    k = np.arange(max(0, math.floor(n * p - reach)), min(n, math.ceil(n * p + reach)) + 1)
    steps = np.log((n - k[:-1]) / k[1:]) + math.log(p / (1 - p))  # from each probability to the next
    ln = np.concatenate([[0.0], np.cumsum(steps)])
    pmf = np.exp(ln - ln.max())
    return int(k[0]), pmf / pmf.sum()


def _convolve(a: Floats, b: Floats) -> Floats:
    if len(a) * len(b) <= _DIRECT:
        return np.convolve(a, b)
    length = len(a) + len(b) - 1
    size = 1 << (length - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size), size)[:length]


def _cumulant(weights: Floats, gamma: float, s: float) -> float:
    """K(s) = ln E exp(s T), in nats."""
    terms = np.logaddexp(math.log1p(-gamma), math.log(gamma) + s * weights) - s * gamma * weights
    return float(terms.sum())


def _tilt(weights: Floats, t: float, gamma: float, below: bool = False) -> float:
    """The s with K'(s) = t, or the largest that is looked at; below: negative s too, else 0 for t <= 0."""
    size = float(np.abs(weights).max(initial=0.0))
    if size == 0 or abs(t) <= 1e-12 * float(np.abs(weights).sum()) or (t < 0 and not below):
        return 0.0
    logit = math.log(gamma / (1 - gamma))

    def excess(s: float) -> float:
        return float((weights * (expit(s * weights + logit) - gamma)).sum()) - t

    sign = math.copysign(1.0, t)
    end, last = sign / size, sign * _STEEPEST / size
    while sign * excess(end) < 0:
        if end == last:
            return last
        end = sign * min(abs(2 * end), abs(last))
    return float(brentq(excess, 0.0, end, xtol=1e-14 * abs(end), rtol=1e-12, maxiter=500))
