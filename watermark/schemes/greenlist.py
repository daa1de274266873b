"""The green list: a keyed coin for each pair, and a bias on the logits of green tokens (Kirchenbauer et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from watermark import prf
from watermark.errors import MarkError
from watermark.io.fields import Types, is_number, wrong_field
from watermark.schemes.counting import count_green

STEPS: Final = 65536
"""gamma is a multiple of 1 / STEPS: the PRF gives sixteen bits."""

_LEAST_DELTA: Final = float(np.finfo(np.float32).tiny)
_MOST_DELTA: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class GreenList:
    """Adds `delta` to the logits of green tokens, a share `gamma` of the vocabulary that changes with the context.

    It works at any temperature, greedy decoding too. It costs quality: unlikely tokens gain as much as likely ones.

    Attributes:
        gamma: fraction of the vocabulary that is green, rounded to a multiple of 1/65536.
        delta: what a green token's logit is raised by.

    Raises:
        MarkError: a parameter is of another type, or out of its range.

    >>> GreenList(delta=2).rate
    0.25
    """

    name: ClassVar[str] = "greenlist"
    operation: ClassVar[str] = "bias"
    whole_rows: ClassVar[bool] = False
    needs_sampling: ClassVar[bool] = False
    FIELDS: ClassVar[Types] = {"gamma": (is_number, "a number"), "delta": (is_number, "a number")}

    gamma: float = 0.25
    delta: float = 1.0

    def __post_init__(self) -> None:
        # no message quotes a value: it might be the secret, in the wrong place
        wrong = wrong_field(vars(self), self.FIELDS)
        if wrong is not None:
            raise MarkError(wrong)
        if not 0 < self.gamma < 1 or not 0 < round(self.gamma * STEPS) < STEPS:
            raise MarkError(f"gamma must lie between 1/{STEPS} and 1 - 1/{STEPS}")
        if not _LEAST_DELTA <= self.delta <= _MOST_DELTA:
            raise MarkError("delta must be positive, and a number that float32 holds")
        object.__setattr__(self, "gamma", round(self.gamma * STEPS) / STEPS)
        object.__setattr__(self, "delta", float(self.delta))

    @property
    def coins(self) -> int:
        """Coins a pair has."""
        return 1

    @property
    def rate(self) -> float:
        """The chance that a coin comes up under the null."""
        return self.gamma

    @property
    def lift(self) -> float:
        """What the log odds that a coin comes up are raised by in marked text."""
        return self.delta

    @property
    def like(self) -> GreenList | None:
        """The green list whose measured students stand for this scheme's (`verify.planning.power`)."""
        return self

    @property
    def threshold(self) -> int:
        """Green means `prf.bits < threshold`; 1 to 65535."""
        return round(self.gamma * STEPS)

    @property
    def parameters(self) -> dict[str, Any]:
        """What a mark file and a card say of it."""
        return {"gamma": self.gamma, "delta": self.delta}

    @property
    def committed(self) -> dict[str, Any]:
        """What the commitment covers beyond `parameters`."""
        return {"threshold": self.threshold}

    def read(self, bits: prf.U16) -> npt.NDArray[np.bool_]:
        """The coins of N pairs, bool [N, 1], from the PRF's bits, uint16 [N]."""
        return (bits < self.threshold)[:, None]

    def hits(self, bits: prf.U16) -> prf.I64:
        """How many coins of N pairs come up, int64 [N], from the same."""
        return (bits < self.threshold).astype(np.int64)

    def count_hits(self, keys: Sequence[bytes], contexts: prf.Ints, tokens: prf.Ints) -> Iterator[prf.I64]:
        """How many of N pairs are green under each of many keys: int64, a few keys at a time, in order."""
        return count_green(keys, contexts, tokens, self.threshold)

    def tilted(self, cells: prf.F64, strength: float) -> prf.F64:
        """The probabilities of red and green, float64 [P, 2], with the log odds of green raised by `strength`."""
        tilted: prf.F64 = cells * np.exp([0.0, strength])
        return np.asarray(tilted / tilted.sum(axis=1, keepdims=True), np.float64)

    @staticmethod
    def tables(schemes: Sequence[Any]) -> tuple[npt.NDArray[Any], ...]:
        """What the kernels need of K schemes: thresholds int32 [K] and deltas float32 [K]."""
        return (
            np.array([scheme.threshold for scheme in schemes], np.int32),
            np.array([scheme.delta for scheme in schemes], np.float32),
        )
