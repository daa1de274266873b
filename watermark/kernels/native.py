"""The compiled kernel for CPUs, at the best of its levels that the processor has.

Where the package was installed without a compiler, `available` is False.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from watermark import prf
from watermark.secret import sealed

try:
    from watermark.kernels import _native
except ImportError:
    _native = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor

available: Final = _native is not None
MOST_MARKS: Final = 16
"""Marks that one row can carry."""

_SHARE: Final = 1 << 21  # tokens that are worth a thread of their own: a third of a millisecond
_KINDS: Final = {"torch.float32": 0, "torch.bfloat16": 1, "torch.float16": 2}


def levels() -> list[str]:
    """What the compiled kernel is built for and this processor has, best first: "avx512", "avx2", "baseline"."""
    return _native.levels() if available else []


def use(level: str) -> None:
    """Run another of the `levels` from now on, in this process, to test or to time it; the results are the same.

    Raises ValueError if this processor has no such level.
    """
    _native.use(level)


def bias_(
    logits: Tensor,
    contexts: Tensor,
    keys: Tensor,
    thresholds: Tensor,
    deltas: Tensor,
    which: Tensor,
    exempt: Tensor,
    allowed: Tensor,
    first: int,
    limit: int,
) -> None:
    """Raise the green tokens' logits in place; arguments as for `watermark.kernels.torch.bias_`."""
    _in_rows(_native.bias, logits, contexts, keys, (thresholds, deltas), which, exempt, first, limit)


def tournament_(
    logits: Tensor,
    contexts: Tensor,
    keys: Tensor,
    layers: Tensor,
    which: Tensor,
    exempt: Tensor,
    allowed: Tensor,
    first: int,
    limit: int,
) -> None:
    """Tilt the logits in place; arguments as for `watermark.kernels.torch.tournament_`."""
    _in_rows(_native.tournament, logits, contexts, keys, (layers,), which, exempt, first, limit)


def _in_rows(
    kernel: Callable[..., None],
    logits: Tensor,
    contexts: Tensor,
    keys: Tensor,
    parameters: tuple[Tensor, ...],
    which: Tensor,
    exempt: Tensor,
    first: int,
    limit: int,
) -> None:
    import torch

    whole = logits if logits.stride(1) == 1 else logits.contiguous()
    rows, columns = whole.shape
    if contexts.dtype != torch.int64 or not contexts.is_contiguous():
        contexts = contexts.to(torch.int64).contiguous()
    several, marks = which.shape
    work = rows * columns * marks
    threads = min(torch.get_num_threads(), work // _SHARE) if work >= 2 * _SHARE else 1
    kernel(
        whole.data_ptr(), _KINDS[str(whole.dtype)], rows, columns, whole.stride(0), first, limit,
        contexts.data_ptr(), contexts.shape[1],
        which.data_ptr(), marks if several > 1 else 0, marks,
        keys.data_ptr(), *[tensor.data_ptr() for tensor in parameters], exempt.data_ptr(), exempt.shape[0], threads,
    )  # fmt: skip
    if whole is not logits:
        logits.copy_(whole)


@sealed
def bits(key: bytes, contexts: prf.Ints, tokens: prf.Ints, threads: int = 1) -> prf.U16:
    """What `prf.bits` gives, by the same arguments and with the same errors."""
    prf.check(contexts, tokens)
    columns = pair_columns(contexts, tokens)
    words, found = prf.key_words(key), np.empty(len(tokens), np.uint16)
    _native.bits(columns.ctypes.data, len(tokens), contexts.shape[1], words.ctypes.data, found.ctypes.data, threads)
    return found


def count_green(keys: prf.U32, columns: prf.U32, threshold: int, threads: int = 1) -> prf.I64:
    """How many pairs are green under each of many keys.

    Args:
        keys: uint32 [K, 8], from `prf.key_words`.
        columns: uint32 [width + 1, n], from `pair_columns`.
        threshold: green means bits < threshold.
        threads: how many to use.

    Returns:
        int64 [K].
    """
    keys, found = np.ascontiguousarray(keys), np.empty(len(keys), np.int64)
    width, n = len(columns) - 1, columns.shape[1]
    _native.count_green(
        columns.ctypes.data, n, width, keys.ctypes.data, len(keys), threshold, found.ctypes.data, threads
    )
    return found


def pair_columns(contexts: prf.Ints, tokens: prf.Ints) -> prf.U32:
    """Contexts [n, width] and tokens [n] as uint32 [width + 1, n], each column of ids in one piece."""
    columns = np.empty((contexts.shape[1] + 1, len(tokens)), np.uint32)
    columns[:-1], columns[-1] = contexts.T, tokens
    return columns


def distinct_rows(rows: prf.U32) -> tuple[prf.I64, prf.I64]:
    """Where each distinct row first stands, ascending, and how often it occurs; rows: uint32 [N, columns], columns > 0.

    Memory beyond the rows: 16 bytes a distinct row for the answer, 16 to 32 for the hash table (twice that while it
    grows). Raises MemoryError.

    The hash has keys of its own in each call, so that nobody can choose rows that it is slow at.
    """
    rows = np.ascontiguousarray(rows)
    keys = np.frombuffer(os.urandom(8 * (rows.shape[1] + 1)), np.uint64)
    first, counts = _native.distinct_rows(rows.ctypes.data, len(rows), rows.shape[1], keys.ctypes.data)
    return np.frombuffer(first, np.int64), np.frombuffer(counts, np.int64)
