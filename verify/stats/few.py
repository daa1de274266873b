"""The tail of a score over the draw of some layers from few: a guaranteed bound that takes no coins for independent.

Where a key only chooses some of m layers that everybody knows, the score that each layer has on given evidence can be
computed, and the null is the draw of the layers and nothing else. A suspect that learned another owner's layers has
large scores at those, and the bound says how likely it is that a key meets one.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax

from verify.stats.binomial import LN10

Floats = npt.NDArray[np.float64]

_ROUNDING: Final = 1e-11  # what a sum of scores may have lost or gained by rounding, relative to the largest score


def few_layers_log10_sf(scores: Floats, t: float, layers: int) -> float:
    """A guaranteed upper bound of log10 P(T >= t) for the sum T of the scores of some distinct layers, drawn at random.

    Chernoff's bound for a draw with replacement, which holds for one without (Hoeffding 1963, theorem 4). It is never
    below the chance of drawing the layer with the largest score each time, m^-layers.

    Args:
        scores: float64 [m], of every layer that there is.
        t: observed T.
        layers: how many are drawn.

    Raises:
        ValueError: t is larger than T can be.

    >>> scores = np.zeros(100)
    >>> scores[7] = 50.0  # one layer of a hundred shows
    >>> round(10 ** few_layers_log10_sf(scores, 50.0, 1), 6)
    0.01
    """
    most = float(scores.max())
    short = most - scores
    scale = float(short.max())
    rounding = _ROUNDING * layers * float(np.abs(scores).max())
    gap = layers * most - t
    if gap < -1e-6 * layers * scale - rounding:
        raise ValueError("T is larger than these layers can make it")
    gap = max(0.0, gap) + rounding
    if scale == 0 or layers * float(short.mean()) <= gap:
        return 0.0
    short, gap = short / scale, gap / scale

    def excess(h: float) -> float:
        return gap - layers * float(softmax(-h * short) @ short)

    start, end = 0.0, 1.0
    while excess(end) < 0:
        start, end = end, 2 * end
    h = float(brentq(excess, start, end, rtol=1e-9))
    exponent = layers * (float(logsumexp(-h * short)) - math.log(len(short))) + h * gap
    return min(0.0, exponent) / LN10
