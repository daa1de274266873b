"""What every kernel needs of some marks, on the device of the logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from watermark.kernels import Tables

GROUP = 512
"""Tokens that sixteen ChaCha blocks cover."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a compiler that traced this would print the secret in its logs
def on_device(tables: Tables, batch: int, limit: int, device: torch.device) -> tuple[Tensor, ...]:
    """Keys, the scheme's parameters, which, exempt, allowed, as the functions of `watermark.kernels.torch` take them.

    The tensors are kept with the tables, so that only the first call for a shape and a device copies anything there.

    Args:
        tables: of the marks.
        batch: rows of the logits.
        limit: tokens from here on are never biased.
        device: of the logits.
    """
    where = (batch if tables.rows is not None else 1, limit, device)
    if where not in tables.on_device:
        exempt = [i for i in tables.exempt if i < limit]
        tensors = (
            torch.from_numpy(tables.keys.view(np.int32)),
            *map(torch.from_numpy, tables.parameters),
            torch.from_numpy(tables.which(batch)),
            torch.tensor(exempt, dtype=torch.int32),
            _allowed(limit, exempt),
        )
        tables.on_device[where] = tuple(tensor.to(device) for tensor in tensors)
    found: tuple[Tensor, ...] = tables.on_device[where]
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
