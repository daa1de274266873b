"""What every test answers, and in which words."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final

CARRIES: Final = "carries the mark"
INSUFFICIENT: Final = "insufficient evidence"


@dataclass(frozen=True)
class Answer(ABC):
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
