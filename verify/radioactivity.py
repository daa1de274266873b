"""The tests for a mark in a suspect: pairs and a mark in, a result out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from verify import statistics
from verify.pairs import PROMPT_WINDOW, Pairs
from verify.statistics import Interval
from verify.verdicts import CARRIES, INSUFFICIENT
from watermark import Mark

LEVEL: Final = 0.95
POWER: Final = 0.9

RANDOMNESS: Final = (
    "The p-value's randomness is the draw of the mark's secret: for a suspect that does not depend on the secret, "
    "the green bits of distinct pairs are independent with probability gamma, whatever the texts and models are."
)


@dataclass(frozen=True)
class TextResult:
    """The exact binomial test on what a suspect wrote.

    Attributes:
        mark: the mark tested.
        pairs: the evidence: distinct pairs, and what was discarded.
        green: number of green pairs, the test's statistic.
        alpha: level of the verdict.
    """

    mark: Mark
    pairs: Pairs = field(repr=False)
    green: int
    alpha: float

    @property
    def n(self) -> int:
        """Number of distinct pairs scored."""
        return len(self.pairs.tokens)

    @property
    def statistic(self) -> int:
        """The number of green pairs."""
        return self.green

    @cached_property
    def log10_pvalue(self) -> float:
        """log10 P(Bin(n, gamma) >= green); finite however small the p-value is."""
        return statistics.binomial_log10_sf(self.green, self.n, self.mark.gamma)

    @property
    def pvalue(self) -> float:
        """P(Bin(n, gamma) >= green); 0.0 once it is below what a double holds (see `log10_pvalue`)."""
        return float(10**self.log10_pvalue)

    @property
    def green_rate(self) -> float | None:
        """green / n; None without a pair."""
        return self.green / self.n if self.n else None

    @property
    def discarded(self) -> dict[str, int]:
        """Positions left out, by reason."""
        return self.pairs.discarded

    @property
    def verdict(self) -> str:
        """`carries the mark` if the p-value is at most alpha, else `insufficient evidence`."""
        return CARRIES if self.pvalue <= self.alpha else INSUFFICIENT

    def confidence_interval(self, level: float = LEVEL) -> Interval:
        """Clopper and Pearson's interval for the rate at which the suspect's pairs are green."""
        return statistics.binomial_interval(self.green, self.n, level)

    @cached_property
    def detectable_rate(self) -> float | None:
        """The green rate that this many pairs would have found with 90 % power; None: no rate."""
        return statistics.detectable_rate(self.n, self.mark.gamma, self.alpha, POWER)

    @property
    def randomness(self) -> str:
        """Where the p-value's randomness comes from, in words."""
        return RANDOMNESS

    @property
    def warnings(self) -> list[str]:
        """What a reader of this result should know, one sentence each."""
        found = []
        if self.n == 0:
            found.append("No position could be scored: there is no evidence either way.")
        if self.discarded[PROMPT_WINDOW] > self.pairs.positions / 2:
            found.append(
                "More than half of the positions were left out because their window occurs in the prompt; "
                "if the prompts cannot carry the mark, say so with --prompts-keyless."
            )
        if self.pairs.prompts < self.pairs.records:
            found.append(
                f"{self.pairs.records - self.pairs.prompts} of {self.pairs.records} records name no prompt: "
                "the test is exact only if what the suspect was shown there cannot carry the mark."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON: numbers, strings, lists and objects of them. Never the secret."""
        return {
            "verdict": self.verdict,
            "pvalue": self.pvalue,
            "log10_pvalue": self.log10_pvalue,
            "test": "exact binomial, one-sided",
            "n": self.n,
            "green": self.green,
            "gamma": self.mark.gamma,
            "green_rate": self.green_rate,
            "interval": list(self.confidence_interval()),
            "interval_level": LEVEL,
            "upper_limit": statistics.upper_limit(self.green, self.n, 1 - LEVEL),
            "detectable_rate": self.detectable_rate,
            "detectable_power": POWER,
            "alpha": self.alpha,
            "positions": self.pairs.positions,
            "discarded": dict(self.discarded),
            "records": self.pairs.records,
            "mark": {"label": self.mark.label, "commitment": self.mark.commitment, "width": self.mark.width},
            "randomness": self.randomness,
            "warnings": self.warnings,
        }


def text_test(mark: Mark, pairs: Pairs, alpha: float = 1e-3) -> TextResult:
    """Test what a suspect wrote for the mark.

    Args:
        mark: the mark; `pairs` must have been extracted with its width and exempt ids.
        pairs: distinct pairs, from `verify.pairs.extract`.
        alpha: level of the verdict, fixed before looking.

    Raises:
        ValueError: alpha is no probability.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    return TextResult(mark, pairs, int(mark.green(pairs.contexts, pairs.tokens).sum()), alpha)
