"""Deduplication: rows of ids to distinct rows and their counts. The rules and the key are elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from watermark.kernels import native

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


def distinct_rows(rows: U32) -> tuple[I64, I64]:
    """Where each distinct row first stands, ascending, and how often it occurs.

    rows: uint32 [N, columns]. Returns int64 [n] twice. Memory beyond the rows: 32 to 48 bytes a distinct row where the
    native kernel is built.
    """
    if native.available and rows.shape[1]:
        return native.distinct_rows(rows)
    _, first, counts = np.unique(codes(list(rows.T), len(rows)), return_index=True, return_counts=True)
    order = np.argsort(first)
    return first[order].astype(np.int64), counts[order].astype(np.int64)


def codes(columns: Sequence[npt.NDArray[np.integer]], rows: int) -> U64:
    """One number a row, uint64 [rows]: equal where and only where the rows are equal. No hash, no collision."""
    code = np.zeros(rows, np.uint64)
    if not len(code):
        return code
    size = 1
    for column in columns:
        radix = int(column.max()) + 1
        if size * radix > 1 << 64:
            code = np.unique(code, return_inverse=True)[1].astype(np.uint64)
            size = int(code.max()) + 1
        code = code * np.uint64(radix) + column.astype(np.uint64)
        size *= radix
    return code


def partition(rows: U32, parts: int, seed: str) -> I64:
    """Which of some parts each row belongs to, int64 [N]: equal rows to the same one, different ones spread evenly.

    The number depends on the row and the seed alone, on every machine. Whoever does not know the seed cannot choose
    rows that are all of one part: the hash is that of `watermark/kernels/distinct.c`.
    """
    drawn = hashlib.shake_256(seed.encode()).digest(8 * (rows.shape[1] + 1))
    *keys, last = np.frombuffer(drawn, "<u8").astype(np.uint64)
    code = np.full(len(rows), last, np.uint64)
    for key, column in zip(keys, rows.T, strict=True):
        code += key * column.astype(np.uint64)
    code = (code ^ (code >> np.uint64(32))) * np.uint64(0xFF51AFD7ED558CCD)
    return ((code ^ (code >> np.uint64(32))) % np.uint64(parts)).astype(np.int64)


def find(known: U64, asked: U64) -> npt.NDArray[np.int64]:
    """Where each of some numbers stands among distinct known ones: int64 [len(asked)], -1 for one that does not."""
    if not len(known):
        return np.full(len(asked), -1)
    order = np.argsort(known)
    place = order[np.searchsorted(known, asked, sorter=order).clip(max=len(known) - 1)]
    return np.where(known[place] == asked, place, -1)
