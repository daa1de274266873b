"""The tournament: some keyed coins for each pair, and a tilt that changes no probability on average over keys.

The exact expectation of the two-candidate tournament sampling of Dathathri et al. (Nature 634, 2024), "SynthID-Text".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from watermark import prf
from watermark.errors import MarkError
from watermark.io.fields import Types, is_int, wrong_field
from watermark.schemes.chacha import ChaCha
from watermark.schemes.counting import pair_bits
from watermark.schemes.greenlist import GreenList

MOST_LAYERS: Final = 8
LIKE_DELTA: Final = {1: 0.9, 2: 1.3, 3: 1.4, 4: 1.7}
"""By layers: the delta of a green list (gamma 0.25) that leaves as much in a student (benchmarks/schemes.py).

By z of the weights test at 300, 1,000 and 3,000 positions, between the students of delta 0.5, 1 and 2: one layer lies
at 1.07, 1.04 and 1.06, under a second key at 1.17, 1.00 and 0.95; two layers at 1.58, 1.53 and 1.54, and at 1.31, 1.45
and 1.51; three at 1.54, 1.49 and 1.48; four at 1.85, 1.86 and 1.82, and at 1.99, 1.74 and 1.75. The least of each,
rounded down.
"""


@dataclass(frozen=True)
class Tournament(ChaCha):
    """Tilts the probabilities p in some layers: p becomes p (1 + g - S), where g is a token's coin and S = sum p g.

    Unbiased: for one token, averaged over keys, no probability changes. Under one fixed key texts become less diverse,
    since the same context always favours the same tokens. It marks nothing at temperature 0, where a token is certain.

    Attributes:
        layers: how many, 1 to 8. More layers are a stronger mark.

    Raises:
        MarkError: `layers` is no integer, or out of its range.

    >>> Tournament(layers=3).read(np.array([0b101], np.uint16)).tolist()
    [[True, False, True]]
    """

    name: ClassVar[str] = "tournament"
    operation: ClassVar[str] = "tournament"
    whole_rows: ClassVar[bool] = True
    needs_sampling: ClassVar[bool] = True
    FIELDS: ClassVar[Types] = {"layers": (is_int, "an integer")}

    layers: int = 4

    def __post_init__(self) -> None:
        wrong = wrong_field(vars(self), self.FIELDS)
        if wrong is not None:
            raise MarkError(wrong)
        if not 1 <= self.layers <= MOST_LAYERS:
            raise MarkError(f"layers must be 1 to {MOST_LAYERS}")
        object.__setattr__(self, "layers", int(self.layers))

    @property
    def coins(self) -> int:
        """Coins a pair has: one a layer."""
        return self.layers

    @property
    def rate(self) -> float:
        """The chance that a coin comes up under the null."""
        return 0.5

    @property
    def lift(self) -> float:
        """What the log odds that a coin comes up are raised by in marked text, where half of the probability has it.

        It is less, ln 2 at least, where less of the probability has the coin, and more where more of it has.
        """
        return math.log(3)

    @property
    def like(self) -> GreenList | None:
        """The green list whose measured students stand for this scheme's; None where no student was measured."""
        delta = LIKE_DELTA.get(self.layers)
        return None if delta is None else GreenList(delta=delta)

    @property
    def parameters(self) -> dict[str, Any]:
        """What a mark file and a card say of it."""
        return {"layers": self.layers}

    @property
    def committed(self) -> dict[str, Any]:
        """What the commitment covers beyond `parameters`: nothing."""
        return {}

    def read(self, bits: prf.Ints) -> npt.NDArray[np.bool_]:
        """The coins of N pairs, bool [N, layers], from the PRF's bits, uint16 [N]: bit l is the coin of layer l."""
        return (bits[:, None] >> np.arange(self.layers, dtype=np.uint16) & 1).astype(np.bool_)

    def hits(self, bits: prf.Ints) -> prf.I64:
        """How many coins of N pairs come up, int64 [N], from the same."""
        found: prf.I64 = np.bitwise_count(bits & np.uint16((1 << self.layers) - 1)).astype(np.int64)
        return found

    def count_hits(self, keys: Sequence[bytes], contexts: prf.Ints, tokens: prf.Ints) -> Iterator[prf.I64]:
        """How many coins of N pairs come up under each of many keys: int64, a key at a time, in order."""
        prf.check(contexts, tokens)
        return (self.hits(pair_bits(key, contexts, tokens)).sum(keepdims=True) for key in keys)

    def tilted(self, cells: prf.F64, strength: float) -> prf.F64:
        """The probabilities of the cells after layers of another strength: 0 changes nothing, `lift` is the mark's own.

        A layer takes the probability S of its coin to S (2 - S), so that it raises the log odds of the coin by
        ln((2 - S) / (1 - S)). Here it raises them by `strength / lift` times as much; later layers see what comes out.

        Args:
            cells: float64 [P, 2^layers], positive, rows that sum to 1: the probability of the tokens whose bits
                below `layers` are the column's number.
            strength: how much, in the unit of `lift`.
        """
        shares = cells
        for layer in range(self.layers):
            halves = shares.reshape(len(cells), -1, 2, 1 << layer)
            red, green = halves.sum(axis=(1, 3)).T
            raised = ((1 + red / (red + green)) / (red / (red + green))) ** (strength / self.lift)
            factors = np.stack([np.ones_like(raised), raised], axis=1)
            shares = (halves * factors[:, None, :, None]).reshape(cells.shape)
            shares = shares / shares.sum(axis=1, keepdims=True)
        return shares

    @staticmethod
    def tables(schemes: Sequence[Any]) -> tuple[npt.NDArray[Any], ...]:
        """What the kernels need of K schemes: layers int32 [K]."""
        return (np.array([scheme.layers for scheme in schemes], np.int32),)
