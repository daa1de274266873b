"""What a mark's PRF reads of a pair: the unit of rule 1, and whether rule 2 can go by contexts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from watermark import Mark

U32 = npt.NDArray[np.uint32]


def whole_pairs(contexts: U32, tokens: U32) -> U32:
    """The rows (context, token) of N pairs, uint32 [N, width + 1]."""
    return np.column_stack([contexts, tokens])


@dataclass(frozen=True)
class Reads:
    """How pairs share coins.

    Attributes:
        inputs: of contexts uint32 [N, width] and tokens [N], rows uint32 [N, any]: pairs with the same row have the
            same coins, and the coins of different rows are independent.
        shared: pairs of different contexts may have the same row, so that a context that was never shown may still
            have coins that were.
    """

    inputs: Callable[[U32, U32], U32] = whole_pairs
    shared: bool = False


PAIRS: Final = Reads()
"""The PRF reads the whole pair, as that of our own schemes does."""


def reads_of(mark: Mark) -> Reads:
    """How the pairs of a mark share coins."""
    return Reads(mark.inputs, mark.scheme.shared)
