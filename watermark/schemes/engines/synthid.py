"""SynthID-Text (Dathathri et al., Nature 634, 2024) as transformers has it, and as its authors' newer code has it.

Both hash the context and the token by a linear congruential generator of 64 bits, and add a key for each layer.

`SynthIDTable` (transformers; synthid-text until December 2024) looks the coin up in a fixed table of 2**16 entries, by
the lowest 16 bits of the hash. A linear generator's low bits come from its inputs' low bits alone: all of a language's
n-grams fall into 2**16 classes, those of one class have the same coins in every layer, and a layer is the same table
from another place on. So the class is what counts once, and a layer has at most 2**16 coins however long the text is.
The chance of a coin is the share of ones in the table.

`SynthIDHash` (synthid-text since June 2025) hashes on, from a start that comes from all keys.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from watermark import prf
from watermark.errors import MarkError
from watermark.io.fields import Types, is_int
from watermark.schemes.engines.base import U64, Engine, keys_of
from watermark.schemes.engines.permuted import numbers

MULTIPLIER: Final = np.uint64(6364136223846793005)
ONE: Final = np.uint64(1)
MOST_LAYERS: Final = 64
_LAYERS: Final = (lambda value: is_int(value) and 1 <= value <= MOST_LAYERS, f"1 to {MOST_LAYERS}")


def hashed(start: int, contexts: prf.Ints, tokens: prf.Ints) -> U64:
    """The hash of N pairs before a layer's key, uint64 [N]: one step of the generator a token."""
    state = np.full(len(tokens), start, np.uint64)
    for column in (*contexts.T, tokens):
        state = (state + column.astype(np.uint64)) * MULTIPLIER + ONE
    return state


@dataclass(frozen=True)
class SynthIDTable(Engine):
    """transformers' SynthID: a coin a layer, from a table.

    Attributes:
        layers: how many keys.
        table_size: entries of the table, a power of two.
        table_seed: of the generator that drew it.

    Raises:
        MarkError: a parameter is of another type, or out of its range.
    """

    name: ClassVar[str] = "synthid-table"
    prf_name: ClassVar[str] = "synthid-lcg-table"
    FIELDS: ClassVar[Types] = {
        "layers": (is_int, "an integer"),
        "table_size": (is_int, "an integer"),
        "table_seed": (is_int, "an integer"),
    }
    CHECKS: ClassVar[Types] = {"layers": _LAYERS}
    needs_sampling: ClassVar[bool] = True

    layers: int
    table_size: int = 1 << 16
    table_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.table_size <= 1 << 24 or self.table_size & (self.table_size - 1):
            raise MarkError("the table's size must be a power of two, at most 2**24")

    @property
    def coins(self) -> int:
        return self.layers

    @property
    def rate(self) -> float:
        return float(table(self.table_size, self.table_seed).mean())

    @property
    def shared(self) -> bool:
        return True

    @property
    def keys(self) -> int:
        return self.layers

    @property
    def period(self) -> int:
        return self.table_size

    @property
    def layers_in_all(self) -> int:
        return self.table_size

    def bits(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.Ints:
        before, entries = hashed(1, contexts, tokens), table(self.table_size, self.table_seed)
        found = np.zeros(len(tokens), np.uint64)
        for layer, secret in enumerate(keys_of(key)):
            place = ((before + np.uint64(secret)) * MULTIPLIER + ONE) & np.uint64(self.table_size - 1)
            found |= entries[place].astype(np.uint64) << np.uint64(layer)
        return found

    def inputs(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.U32:
        """The class of each of N pairs, uint32 [N, 1]: the lowest bits of its hash."""
        return (hashed(1, contexts, tokens) & np.uint64(self.table_size - 1)).astype(np.uint32)[:, None]

    def layer_scores(self, contexts: prf.Ints, tokens: prf.Ints, weights: prf.F64) -> prf.F64:
        """Of each place where a layer can begin in the table, float64 [table_size]: a circular cross-correlation."""
        size = self.table_size
        places = (hashed(1, contexts, tokens) * MULTIPLIER & np.uint64(size - 1)).astype(np.int64)
        total = np.bincount(places, weights, size)
        return np.asarray(np.fft.irfft(np.fft.rfft(total).conj() * _spectrum(size, self.table_seed), size), np.float64)


@lru_cache(maxsize=4)
def table(size: int, seed: int) -> npt.NDArray[np.uint8]:
    """The table: what `torch.randint(0, 2)` draws on a CPU, uint8 [size]."""
    return (numbers(seed % (1 << 32), size) & 1).astype(np.uint8)


@lru_cache(maxsize=2)
def _spectrum(size: int, seed: int) -> npt.NDArray[np.complex128]:
    """The Fourier transform of the table, less its mean."""
    entries = table(size, seed)
    return np.asarray(np.fft.rfft(entries - entries.mean()), np.complex128)


@dataclass(frozen=True)
class SynthIDHash(Engine):
    """synthid-text's newer hash: a coin a layer, bit 30 of what twelve more steps give.

    Attributes:
        layers: how many keys.

    Raises:
        MarkError: `layers` is of another type, or out of its range.
    """

    name: ClassVar[str] = "synthid-hash"
    prf_name: ClassVar[str] = "synthid-lcg-hash"
    FIELDS: ClassVar[Types] = {"layers": (is_int, "an integer")}
    CHECKS: ClassVar[Types] = {"layers": _LAYERS}
    needs_sampling: ClassVar[bool] = True

    layers: int

    @property
    def coins(self) -> int:
        return self.layers

    @property
    def keys(self) -> int:
        return self.layers

    def bits(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.Ints:
        secrets = keys_of(key)
        whole = b"".join(secret.to_bytes(8, "little") for secret in secrets)
        start = int.from_bytes(hashlib.sha256(whole).digest(), "big") % ((1 << 63) - 1)
        before = hashed(start, contexts, tokens)
        found = np.zeros(len(tokens), np.uint64)
        for layer, secret in enumerate(secrets):
            state = (before + np.uint64(secret)) * MULTIPLIER + ONE
            for _ in range(12):  # the shift keeps the sign
                state = (((state + ONE) * MULTIPLIER + ONE).astype(np.int64) >> np.int64(5)).astype(np.uint64)
            found |= (state >> np.uint64(30) & ONE) << np.uint64(layer)
        return found
