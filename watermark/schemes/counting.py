"""The PRF's bits of pairs under one key, and how many pairs are green under each of many."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from watermark import prf
from watermark.kernels import native
from watermark.secret import sealed

_AT_ONCE: Final = 1 << 26  # pairs times keys between two signs of life
_WORTH_A_GPU: Final = 1 << 30


def count_green(
    keys: Sequence[bytes], contexts: npt.NDArray[np.integer], tokens: npt.NDArray[np.integer], threshold: int
) -> Iterator[npt.NDArray[np.int64]]:
    """How many of N pairs are green under each of many keys: int64, a few keys at a time, in order.

    On a GPU where there is one and the work is worth it, else on every core that this process may use.

    Args:
        keys: 32 bytes each, from `watermark.prf.prf_key`.
        contexts: integers [N, width], oldest token first.
        tokens: integers [N].
        threshold: green means bits < threshold.
    """
    prf.check(contexts, tokens)
    step = max(1, _AT_ONCE // max(1, len(tokens)))
    counter = _counter(len(keys) * len(tokens), contexts, tokens, threshold)
    for start in range(0, len(keys), step):
        yield counter(keys[start : start + step])


def _counter(
    work: int, contexts: npt.NDArray[np.integer], tokens: npt.NDArray[np.integer], threshold: int
) -> Callable[[Sequence[bytes]], npt.NDArray[np.int64]]:
    """The function from some keys to their counts."""
    if work >= _WORTH_A_GPU and importlib.util.find_spec("triton"):
        import torch

        if torch.cuda.is_available():
            from watermark.kernels import triton

            there = torch.from_numpy(native.pair_columns(contexts, tokens).astype(np.int64)).cuda()
            return sealed(
                lambda keys: (
                    triton.count_green(torch.from_numpy(_words(keys).view(np.int32)).cuda(), there, threshold)
                    .cpu()
                    .numpy()
                )
            )
    if native.available:
        columns = native.pair_columns(contexts, tokens)
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return sealed(lambda keys: native.count_green(_words(keys), columns, threshold, threads))
    return lambda keys: np.array([(prf.bits(key, contexts, tokens) < threshold).sum() for key in keys], np.int64)


def _words(keys: Sequence[bytes]) -> npt.NDArray[np.uint32]:
    return np.stack([prf.key_words(key) for key in keys])


def pair_bits(key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.U16:
    """What `prf.bits` gives, by the fastest implementation that is here."""
    bits = native.bits if native.available else prf.bits
    return bits(key, np.asarray(contexts), np.asarray(tokens))
