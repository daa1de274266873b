"""SGLang's own mark: Gumbel-max over MurmurHash3, keyed by the last tokens of prompt and output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from watermark import prf
from watermark.io.fields import Types
from watermark.schemes.engines.base import U64, Engine, keys_of
from watermark.schemes.engines.philox import LEADING

_MASK: Final = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class MurmurGumbel(Engine):
    """It takes the token with the largest ln u / p. The four coins of a pair are the leading bits of u."""

    name: ClassVar[str] = "murmur-gumbel"
    prf_name: ClassVar[str] = "murmur3-x86-32"
    FIELDS: ClassVar[Types] = {}
    needs_sampling: ClassVar[bool] = True

    @property
    def coins(self) -> int:
        return LEADING

    def bits(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.Ints:
        (number,) = keys_of(key)
        return words(number, hashed(contexts), tokens) >> np.uint64(32 - LEADING)

    def inputs(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.U32:
        """The hash of the context, 32 bits, and the token."""
        return np.column_stack([hashed(contexts), tokens.astype(np.uint64)]).astype(np.uint32)


def hashed(contexts: prf.Ints) -> U64:
    """MurmurHash3 of each context, 32 bits: uint64 [N]."""
    state = np.zeros(len(contexts), np.uint64)
    for column in contexts.T:
        state = _mixed(state, column.astype(np.uint64))
    return _finished(state ^ np.uint64(4 * contexts.shape[1]))


def words(key: int, context: U64, tokens: prf.Ints) -> U64:
    """The 32 bits of which u is made: MurmurHash3 of key, hash of the context, and token, uint64 [N]."""
    state = np.zeros(len(tokens), np.uint64)
    for word in (np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32), context, tokens.astype(np.uint64)):
        state = _mixed(state, np.broadcast_to(word, state.shape))
    return _finished(state ^ np.uint64(16))


def _rotated(values: U64, by: int) -> U64:
    return values << np.uint64(by) & _MASK | values >> np.uint64(32 - by)


def _mixed(state: U64, value: U64) -> U64:
    value = _rotated(value * np.uint64(0xCC9E2D51) & _MASK, 15) * np.uint64(0x1B873593) & _MASK
    return _rotated(state ^ value, 13) * np.uint64(5) + np.uint64(0xE6546B64) & _MASK


def _finished(value: U64) -> U64:
    value = (value ^ value >> np.uint64(16)) * np.uint64(0x85EBCA6B) & _MASK
    value = (value ^ value >> np.uint64(13)) * np.uint64(0xC2B2AE35) & _MASK
    return value ^ value >> np.uint64(16)
