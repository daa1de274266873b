"""Many tests at once: Holm's adjustment and Benjamini and Hochberg's."""

from __future__ import annotations

import numpy as np

from verify.stats.binomial import Floats


def holm(log10_pvalues: Floats) -> Floats:
    """Adjusted p-values that hold for all hypotheses at once, float64 [m], log10 in and out (Holm 1979).

    Rejecting what lies at or below alpha makes one false rejection or more with a probability of at most alpha,
    under any dependence of the p-values. The i-th smallest of m is multiplied by m - i + 1, and made no smaller than
    those before it.

    Raises:
        ValueError: a p-value is nan or above 1.
    """
    _check_log10_pvalues(log10_pvalues)
    order = np.argsort(log10_pvalues, kind="stable")
    m = len(order)
    adjusted = np.empty(m)
    adjusted[order] = np.maximum.accumulate(log10_pvalues[order] + np.log10(np.arange(m, 0, -1)))
    return adjusted.clip(max=0.0)


def benjamini_hochberg(log10_pvalues: Floats) -> Floats:
    """q-values, float64 [m], log10 in and out (Benjamini and Hochberg 1995).

    Of what lies at or below a level, a share of at most that level is expected to be false, if the p-values are
    independent or PRDS (Benjamini and Yekutieli 2001, theorem 1.2): given the p-value of a true null, a larger one
    never makes other p-values smaller. The i-th smallest of m is multiplied by m / i, and made no larger than those
    after it.

    Raises:
        ValueError: a p-value is nan or above 1.
    """
    _check_log10_pvalues(log10_pvalues)
    order = np.argsort(log10_pvalues, kind="stable")
    m = len(order)
    scaled = log10_pvalues[order] + np.log10(m / np.arange(1, m + 1))
    adjusted = np.empty(m)
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return adjusted.clip(max=0.0)


def _check_log10_pvalues(log10_pvalues: Floats) -> None:
    if not (log10_pvalues <= 0).all():
        raise ValueError("the log10 of a p-value is a number that is at most 0")
