"""A mixture e-process over the size of the effect: evidence that may be looked at after every record.

Under the null each new coin G comes up with probability gamma, whatever came before. For a tilt h, the product over
the coins of exp(h a G) / (1 - gamma + gamma exp(h a)) then has mean 1 at every moment, and so has any mixture over
h, and over several ways to weigh the coins. By Ville's inequality it ever reaches 1 / alpha with probability at most
alpha, whatever the stopping rule. The weights a of a pair, which all its coins share, are fixed when the pair is first
counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from verify.stats.binomial import LN10, Floats
from verify.stats.weighted import TILTS


@dataclass
class EProcess:
    """The running evidence.

    gamma: chance of a coin under the null; least: the smallest tilt of interest, for a unit of the first weighting;
    weightings: how many weights a pair has.
    """

    gamma: float
    least: float
    weightings: int = 1
    pairs: int = 0
    best: float = 0.0
    _logs: Floats = field(init=False)
    _against_least: float = 0.0

    def __post_init__(self) -> None:
        self._logs = np.zeros((len(TILTS), self.weightings))

    def add(self, weights: Floats, coins: npt.NDArray[np.bool_]) -> None:
        """Count new pairs: weights float64 [n, weightings], or [n] if all are the same, finite; coins bool [n, C]."""
        weights = weights if weights.ndim == 2 else weights[:, None]
        self.pairs += len(weights)
        hits, tries = coins.sum(axis=1)[:, None], coins.shape[1]
        self._logs += self._ln_factors(TILTS[:, None, None] * weights, hits, tries).sum(axis=1)
        self._against_least -= float(self._ln_factors(self.least * weights[:, :1], hits, tries).sum())
        self.best = max(self.best, self.log10_e)

    def _ln_factors(self, logits: Floats, hits: npt.NDArray[np.int64], tries: int) -> Floats:
        """ln of the product of exp(b G) / (1 - gamma + gamma exp(b)) over the coins of each pair.

        Each factor is divided through by exp(b G), so that nothing cancels. logits: b, float64 [..., n, weightings];
        hits: int64 [n, 1], how many of a pair's coins came up, of so many tries.
        """
        ln_up, ln_down = math.log(self.gamma), math.log1p(-self.gamma)
        up, down = np.logaddexp(ln_up, ln_down - logits), np.logaddexp(ln_down, ln_up + logits)
        found: Floats = np.negative(hits * up + (tries - hits) * down)
        return found

    @property
    def log10_e(self) -> float:
        """log10 of the evidence now."""
        return (float(logsumexp(self._logs)) - math.log(self._logs.size)) / LN10

    @property
    def log10_pvalue(self) -> float:
        """log10 of the anytime-valid p-value: one over the most evidence that there ever was."""
        return -self.best

    @property
    def log10_futility(self) -> float:
        """log10 of an e-value against every tilt of `least` or more: large when that much would have shown by now."""
        return self._against_least / LN10
