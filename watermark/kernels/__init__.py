"""Sibling implementations of the same functions: `native` (C, on a CPU), `triton` (on a GPU), `torch` (anywhere).

`bias_` raises the green tokens of a batch of logits, bit-identically; `tournament_` tilts a batch, to within 1e-5.
`native` also has what scoring needs: the bits of pairs, the greens under many keys, distinct rows; `triton` the greens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from watermark.secret import Secret, SecretDict

Kernel = Literal["native", "triton", "torch"]


@dataclass(frozen=True, eq=False, repr=False)
class Tables:
    """What every kernel needs of K marks, as numpy arrays; it holds the PRF keys, so that its repr says nothing.

    Attributes:
        width: number of context tokens.
        secret_keys: 32 bytes each, the marks' keys.
        operation: which kernel.
        parameters: what it takes of the marks' schemes, each of length K.
        whole_rows: it needs all logits of a row.
        exempt: ids never biased, ascending.
        vocabulary_size: tokens from here on are never biased; None: no limit.
        rows: for each row of a batch the indices of its marks; None: every row carries all of them.
        on_device: tensors made of all this, by shape and device; it shows nothing.
    """

    width: int
    secret_keys: tuple[Secret, ...]
    operation: str
    parameters: tuple[npt.NDArray[Any], ...]
    whole_rows: bool
    exempt: tuple[int, ...]
    vocabulary_size: int | None
    rows: tuple[tuple[int, ...], ...] | None
    on_device: SecretDict = field(default_factory=SecretDict)

    @property
    def keys(self) -> npt.NDArray[np.uint32]:
        """The marks' key words: uint32 [K, 8]."""
        return np.stack([np.frombuffer(key, "<u4").astype(np.uint32) for key in self.secret_keys])

    def which(self, batch: int) -> npt.NDArray[np.int32]:
        """The marks of each row of the logits, int32 [batch, M] or [1, M], -1 for none.

        Logits with k times as many rows as were named (beams, candidates) take k rows for each of those.

        Raises:
            ValueError: the number of rows does not fit.
        """
        if self.rows is None:
            return np.arange(len(self.secret_keys), dtype=np.int32)[None]
        if not self.rows or batch % len(self.rows):
            raise ValueError(f"marks were named for {len(self.rows)} rows, and the logits have {batch}")
        found = np.full((len(self.rows), max(1, *map(len, self.rows))), -1, np.int32)
        for row, chosen in enumerate(self.rows):
            found[row, : len(chosen)] = chosen
        return np.repeat(found, batch // len(self.rows), axis=0)
