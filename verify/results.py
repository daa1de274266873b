"""What every test answers, and in which words."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final

CARRIES: Final = "carries the mark"
INSUFFICIENT: Final = "insufficient evidence"


@dataclass(frozen=True)
class Result(ABC):
    """The result of one test. alpha: level of the verdict, fixed before looking."""

    alpha: float

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, not {self.alpha}")

    @property
    @abstractmethod
    def log10_pvalue(self) -> float:
        """log10 of the p-value; finite however small it is."""

    @property
    @abstractmethod
    def test(self) -> str:
        """The test's name, in words."""

    @property
    @abstractmethod
    def positive(self) -> str:
        """The verdict where p <= alpha."""

    @property
    @abstractmethod
    def randomness(self) -> str:
        """Where the p-value's randomness comes from, in words."""

    @property
    @abstractmethod
    def warnings(self) -> list[str]:
        """What a reader of this result should know, one sentence each."""

    @property
    def pvalue(self) -> float:
        """The p-value; 0.0 once it is below what a double holds (see `log10_pvalue`)."""
        return float(10**self.log10_pvalue)

    @property
    def verdict(self) -> str:
        """`positive` if the p-value is at most alpha, else `insufficient evidence`."""
        return self.positive if self.log10_pvalue <= math.log10(self.alpha) else INSUFFICIENT

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON: numbers, strings, lists and objects of them. Never a secret."""
        return {
            "verdict": self.verdict,
            "pvalue": self.pvalue,
            "log10_pvalue": self.log10_pvalue,
            "alpha": self.alpha,
            "test": self.test,
            "randomness": self.randomness,
            "warnings": self.warnings,
        }


def scientific(log10: float) -> str:
    """A probability of this log10, as one reads it: 0.0213, 3.2e-13, 10^-4133.7."""
    if log10 > -4:
        return f"{10**log10:.4f}"
    return f"{10**log10:.1e}" if log10 > -300 else f"10^{log10:.1f}"


@dataclass(frozen=True)
class FingerprintResult(Result):
    """The result of one fingerprint."""

    @property
    @abstractmethod
    def statistic(self) -> float:
        """What the p-value judges."""

    @property
    @abstractmethod
    def n(self) -> int:
        """How much evidence there was, in the test's own unit."""

    @property
    @abstractmethod
    def breaks(self) -> str:
        """What would make the p-value wrong, and what would hide a guilty suspect, in words."""

    @property
    def warnings(self) -> list[str]:
        """What a reader of this result should know, one sentence each."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON: numbers, strings, lists and objects of them. Never a secret."""
        return super().to_dict() | {"statistic": self.statistic, "n": self.n, "breaks": self.breaks}
