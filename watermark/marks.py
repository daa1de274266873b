"""Several marks at once: the provider's and each customer's, in one pass over the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from watermark import greenlist
from watermark.errors import MarkError
from watermark.kernels.native import MOST_MARKS

if TYPE_CHECKING:
    from torch import Tensor

    from watermark.mark import Mark


@dataclass(frozen=True)
class Marks:
    """Marks that are embedded together. Their biases add, and each is verified on its own.

    Attributes:
        table: the marks, all of one width, one vocabulary and one set of exempt ids, as a mark and its children are.
        rows: for each row of a batch the indices of its marks in `table`; None: every row carries all of them.

    Raises:
        MarkError: there is no mark, one comes twice, they do not fit together, or they are too many for one row.
    """

    table: tuple[Mark, ...]
    rows: tuple[tuple[int, ...], ...] | None = None
    _tensors: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.table:
            raise MarkError("no mark to embed")
        for name in ("width", "vocabulary_size", "exempt", "tokenizer"):
            if len({getattr(mark, name) for mark in self.table}) > 1:
                raise MarkError(
                    f"marks that are embedded together must agree in '{name}'", "derive them from one: mark derive"
                )
        rows = (tuple(range(len(self.table))),) if self.rows is None else self.rows
        if len(set(self.table)) < len(self.table) or any(len(set(row)) < len(row) for row in rows):
            raise MarkError("a mark was named twice: its delta would double", "name each mark once")
        if max(map(len, rows), default=0) > MOST_MARKS:
            raise MarkError(f"a row can carry at most {MOST_MARKS} marks")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tensors": {}}  # what lies on a device stays there

    @classmethod
    def by_row(cls, rows: Sequence[Sequence[Mark]]) -> Marks:
        """Marks of which row i of the batch carries `rows[i]`, perhaps none."""
        table = tuple(dict.fromkeys(mark for row in rows for mark in row))
        place = {mark: i for i, mark in enumerate(table)}
        return cls(table, tuple(tuple(place[mark] for mark in row) for row in rows))

    @property
    def width(self) -> int:
        """Number of context tokens."""
        return self.table[0].width

    def which(self, rows: int) -> npt.NDArray[np.int32]:
        """The marks of each row of the logits, int32 [rows, M] or [1, M], -1 for none.

        Logits with k times as many rows as were named (beams, candidates) take k rows for each of those.

        Raises:
            ValueError: the number of rows does not fit.
        """
        if self.rows is None:
            return np.arange(len(self.table), dtype=np.int32)[None]
        if not self.rows or rows % len(self.rows):
            raise ValueError(f"marks were named for {len(self.rows)} rows, and the logits have {rows}")
        found = np.full((len(self.rows), max(1, *map(len, self.rows))), -1, np.int32)
        for row, chosen in enumerate(self.rows):
            found[row, : len(chosen)] = chosen
        return np.repeat(found, rows // len(self.rows), axis=0)

    def bias_(
        self, logits: Tensor, contexts: Tensor, *, first_token: int = 0, kernel: greenlist.Kernel | None = None
    ) -> Tensor:
        """Add the marks' deltas in place to green tokens; see `watermark.greenlist.bias_`."""
        return greenlist.bias_(self, logits, contexts, first_token=first_token, kernel=kernel)
