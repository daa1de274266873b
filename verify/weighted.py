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

from verify.statistics import LN10

Floats = npt.NDArray[np.float64]

_DIRECT: Final = 1 << 26  # multiplications up to which a convolution is done without the Fourier transform


def z_score(weights: Floats, t: float, gamma: float) -> float:
    """T over its exact null standard deviation; 0 without a weight. For the eye: no p-value comes from it."""
    scale = math.sqrt(gamma * (1 - gamma) * float(weights @ weights))
    return t / scale if scale else 0.0


def chernoff_log10_sf(weights: Floats, t: float, gamma: float) -> float:
    """A guaranteed upper bound of log10 P(T >= t): the minimum over s >= 0 of K(s) - s t.

    weights: float64 [n]; t: observed T; K: the exact cumulant function of T.
    """
    s = _tilt(weights, t, gamma)
    if s <= 0:
        return 0.0
    if math.isinf(s):
        return _at_the_maximum(weights, gamma) / LN10
    return min(0.0, _cumulant(weights, gamma, s) - s * t) / LN10


def saddlepoint_log10_sf(weights: Floats, t: float, gamma: float) -> float:
    """An estimate of log10 P(T >= t): Barndorff-Nielsen's form of the Lugannani-Rice formula (1980, 1986).

    Close to the truth where many weights matter; not guaranteed.
    """
    s = _tilt(weights, t, gamma, below=True)
    if math.isinf(s):
        return _at_the_maximum(weights, gamma) / LN10 if s > 0 else 0.0
    p = expit(s * weights + math.log(gamma / (1 - gamma)))
    variance = float((weights**2 * p * (1 - p)).sum())
    if variance == 0:
        return 0.0
    r = math.copysign(math.sqrt(max(0.0, 2 * (s * t - _cumulant(weights, gamma, s)))), s)
    u = s * math.sqrt(variance)
    if abs(r) < 1e-3:  # the formula is 0 / 0 here; its limit is Edgeworth's first correction
        skewness = float((weights**3 * p * (1 - p) * (1 - 2 * p)).sum()) / variance**1.5
        return math.log10(min(1.0, max(0.0, 0.5 - r / math.sqrt(2 * math.pi) - skewness / 6 / math.sqrt(2 * math.pi))))
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
    s = _tilt(counts.astype(np.float64), green - gamma * total, gamma)
    if math.isinf(s):
        return len(counts) * math.log10(gamma)
    s = max(s, 0.0)
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
    """The s with K'(s) = t; infinite where t is the largest or smallest value of T. below: negative s too."""
    logit = math.log(gamma / (1 - gamma))
    positive, negative = float(weights[weights > 0].sum()), float(weights[weights < 0].sum())
    largest, smallest = positive - gamma * (positive + negative), negative - gamma * (positive + negative)
    slack = 1e-12 * (positive - negative)
    if t >= largest - slack:
        return math.inf if positive > negative else 0.0
    if t <= 0 and not below:
        return 0.0
    if t <= smallest + slack:
        return -math.inf

    def excess(s: float) -> float:
        return float((weights * (expit(s * weights + logit) - gamma)).sum()) - t

    sign = 1.0 if t > 0 else -1.0
    end = sign / float(np.abs(weights).max())
    while sign * excess(end) < 0:
        end *= 2
        if abs(end) > 1e300:
            return math.copysign(math.inf, end)
    return float(brentq(excess, 0.0, end, xtol=1e-300, rtol=1e-12)) if t else 0.0


def _at_the_maximum(weights: Floats, gamma: float) -> float:
    """ln P(T is as large as it can be)."""
    return float((weights > 0).sum()) * math.log(gamma) + float((weights < 0).sum()) * math.log1p(-gamma)
