"""What every kernel needs of some marks, on the device of the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from watermark import prf

if TYPE_CHECKING:
    from watermark.marks import Marks

GROUP = 512
"""Tokens that sixteen ChaCha blocks cover."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a compiler that traced this would print the secret in its logs
def on_device(marks: Marks, rows: int, limit: int, device: torch.device) -> tuple[Tensor, ...]:
    """Keys, thresholds, deltas, which, exempt, allowed, as `watermark.kernels.torch.bias_` takes them.

    rows: of the logits; limit: tokens from here on are never biased. The tensors are kept with the marks, so that
    only the first call for a shape and a device copies anything there.
    """
    where = (rows if marks.rows is not None else 1, limit, device)
    if where not in marks._tensors:
        keys = np.stack([prf.key_words(mark.prf_key) for mark in marks.table]).view(np.int32)
        exempt = [i for i in marks.table[0].exempt if i < limit]
        tensors = (
            torch.from_numpy(keys),
            torch.tensor([mark.threshold for mark in marks.table], dtype=torch.int32),
            torch.tensor([mark.delta for mark in marks.table], dtype=torch.float32),
            torch.from_numpy(marks.which(rows)),
            torch.tensor(exempt, dtype=torch.int32),
            _allowed(limit, exempt),
        )
        marks._tensors[where] = tuple(tensor.to(device) for tensor in tensors)
    found: tuple[Tensor, ...] = marks._tensors[where]
    return found


def _allowed(limit: int, exempt: list[int]) -> Tensor:
    """One int32 a ChaCha block, [ceil(limit / 512) * 16]: bit 16 half + word says whether that token may be biased."""
    groups = -(-limit // GROUP)
    may = np.zeros(groups * GROUP, np.bool_)
    may[:limit] = True
    may[exempt] = False
    places = np.uint32(1) << np.arange(32, dtype=np.uint32)[:, None]  # [half and word, lane]
    words = (may.reshape(groups, 32, 16) * places).sum(axis=1, dtype=np.uint32)
    return torch.from_numpy(words.reshape(-1).view(np.int32))
