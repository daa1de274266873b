"""The p-value of pairs and their weights, by the rule of the test: one place for every mark.

Where each key has coins of its own, those of distinct pairs are independent under the null, and the tail of their sum
is exact or bounded (`verify.stats.binomial`, `verify.stats.weighted`). Where a key only chooses among few layers that
everybody knows, what is random is that choice alone (`verify.stats.few`), whatever the rule.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from verify.data.pairs import WeightedPairs
from verify.stats import binomial, weighted
from verify.stats.few import few_layers_log10_sf
from watermark.schemes import Scheme

I64 = npt.NDArray[np.int64]

BINOMIAL: Final = "binomial"
COUNTS: Final = "counts"
CHERNOFF: Final = "chernoff"
MIXTURE: Final = "mixture"


def log10_tail(rule: str, scheme: Scheme, pairs: WeightedPairs, hits: I64, *, opposite: bool = False) -> float:
    """log10 of the p-value of distinct pairs: the chance that a key which nobody used has a score as large.

    Args:
        rule: `binomial` (each pair weighs 1), `counts` (weights are whole, at least 1), `chernoff` (any weights, which
            depend on no coin), or `mixture` (weights may depend on coins that were seen before their own).
        scheme: the mark's.
        pairs: weights float64 [n].
        hits: int64 [n], how many of each pair's coins came up.
        opposite: of the coins that did not come up.

    Raises:
        ValueError: the weights are none that the rule can take, or the hits more than there are coins.
    """
    rate, coins = scheme.rate, scheme.coins
    weights = np.ones(len(hits)) if rule == BINOMIAL else pairs.weights
    if opposite:
        rate, hits = 1 - rate, coins - hits
    t = float(weights @ (hits - coins * rate))
    scores = scheme.layer_scores(pairs.contexts, pairs.tokens, weights)
    if scores is not None:
        return few_layers_log10_sf(-scores if opposite else scores, t, coins)
    if rule == BINOMIAL:
        return binomial.binomial_log10_sf(int(hits.sum()), len(hits) * coins, rate)
    if rule == COUNTS:
        counts = weights.astype(np.int64)
        return weighted.exact_log10_sf(counts, int(counts @ hits), rate, coins)
    bound = weighted.chernoff_log10_sf if rule == CHERNOFF else weighted.mixture_log10_sf
    return bound(weights, t, rate, coins)


def coin_level(scheme: Scheme, alpha: float) -> float:
    """The level at which an exact test of independent coins finds about as much as the scheme's test does at alpha.

    Where a key chooses among few layers: Chernoff's bound is alpha at sqrt(2 ln 1/alpha) standard deviations.
    """
    return alpha if scheme.layers_in_all is None else float(ndtr(-math.sqrt(-2 * math.log(alpha))))


def over_layers(scheme: Scheme) -> str | None:
    """What the bound is called where a key chooses among few layers; None: each key has coins of its own."""
    if scheme.layers_in_all is None:
        return None
    return f"Chernoff bound over the draw of {scheme.coins} of {scheme.layers_in_all:,} layers"
