"""What every test for a mark answers, and what these tests share: the score and the decoy keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from verify.data.pairs import WeightedPairs
from verify.results import CARRIES, Result
from verify.stats import weighted
from watermark import Mark

LEVEL: Final = 0.95


POWER: Final = 0.9


RANDOMNESS: Final = (
    "The p-value's randomness is the draw of the mark's secret: for a suspect that does not depend on the secret, "
    "the green bits of distinct pairs are independent with probability gamma, whatever the texts and models are. "
    "That takes prompts, probes and a reference that do not depend on the secret either, or rule 2 for those that do."
)


NO_EVIDENCE: Final = "No position could be scored: there is no evidence either way."


@dataclass(frozen=True)
class MarkResult(Result):
    """What every test for a mark answers. mark: the mark tested."""

    mark: Mark

    @property
    def positive(self) -> str:
        """The verdict where p <= alpha."""
        return CARRIES

    @property
    def randomness(self) -> str:
        """Where the p-value's randomness comes from, in words."""
        return RANDOMNESS

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON: numbers, strings, lists and objects of them. Never the secret."""
        return super().to_dict() | {
            "gamma": self.mark.gamma,
            "mark": {"label": self.mark.label, "commitment": self.mark.commitment, "width": self.mark.width},
        }


@dataclass(frozen=True)
class Decoys:
    """The test's z under keys drawn as the true one was, never used: what an innocent mark looks like here."""

    z: tuple[float, ...]
    above: int

    @property
    def pvalue(self) -> float:
        """Rank of the true key among them, (1 + above) / (1 + decoys): exact too, but never below that."""
        return (1 + self.above) / (1 + len(self.z))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "keys": len(self.z),
            "above": self.above,
            "pvalue": self.pvalue,
            "mean_z": float(np.mean(self.z)),
            "sd_z": float(np.std(self.z)),
            "largest_z": float(np.max(self.z)),
        }


def score(mark: Mark, pairs: WeightedPairs) -> float:
    """T = sum a (G - gamma), the statistic of every weighted test."""
    return float(pairs.weights @ (mark.green(pairs.contexts, pairs.tokens) - mark.gamma))


def draw_decoys(mark: Mark, pairs: WeightedPairs, number: int) -> Decoys | None:
    """The test's z under `number` keys drawn as the true one was; None for 0."""
    if not number:
        return None
    statistic = score(mark, pairs)
    others = [score(Mark.new(gamma=mark.gamma, delta=mark.delta, width=mark.width), pairs) for _ in range(number)]
    z = tuple(weighted.z_score(pairs.weights, other, mark.gamma) for other in others)
    return Decoys(z, sum(other >= statistic for other in others))
