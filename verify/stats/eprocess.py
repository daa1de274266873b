"""A mixture e-process over the size of the effect: evidence that may be looked at after every record.

Under the null each new coin G comes up with probability gamma, whatever came before. For a tilt h, the product over
the coins of exp(h a G) / (1 - gamma + gamma exp(h a)) then has mean 1 at every moment, and so has any mixture over
h. By Ville's inequality it ever reaches 1 / alpha with probability at most alpha, whatever the stopping rule. The
weight a of a pair, which all its coins share, is fixed when the pair is first counted.
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
    """The running evidence. gamma: chance of a coin under the null; least: the smallest tilt of interest."""

    gamma: float
    least: float
    pairs: int = 0
    best: float = 0.0
    _logs: Floats = field(default_factory=lambda: np.zeros(len(TILTS) + 1))

    def add(self, weights: Floats, coins: npt.NDArray[np.bool_]) -> None:
        """Count new pairs: weights float64 [n], finite; their coins, bool [n, C]."""
        self.pairs += len(weights)
        weights, green = np.repeat(weights, coins.shape[1]), coins.ravel()
        tilts = np.append(TILTS, self.least)[:, None]
        ln_green, ln_red = math.log(self.gamma), math.log1p(-self.gamma)
        own, other = np.where(green, ln_green, ln_red), np.where(green, ln_red, ln_green)
        # exp(h a G) / (1 - gamma + gamma exp(h a)), divided through by exp(h a G): nothing cancels
        self._logs -= np.logaddexp(own, other - tilts * np.where(green, weights, -weights)).sum(axis=1)
        self.best = max(self.best, self.log10_e)

    @property
    def log10_e(self) -> float:
        """log10 of the evidence now."""
        return (float(logsumexp(self._logs[:-1])) - math.log(len(TILTS))) / LN10

    @property
    def log10_pvalue(self) -> float:
        """log10 of the anytime-valid p-value: one over the most evidence that there ever was."""
        return -self.best

    @property
    def log10_futility(self) -> float:
        """log10 of an e-value against every tilt of `least` or more: large when that much would have shown by now."""
        return -float(self._logs[-1]) / LN10
