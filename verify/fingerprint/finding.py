"""What every fingerprint answers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from verify.verdicts import Answer


@dataclass(frozen=True)
class Finding(Answer):
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
