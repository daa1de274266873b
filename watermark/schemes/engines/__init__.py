"""Marks of other engines: their keyed functions, read as coins, so that every test takes them.

Each is written from what the engine's public code computes, and held to it token by token in the tests. A score that is
no coin becomes some: a uniform number is read as its leading bits, which are fair coins. None of them embeds anything:
that is the engine's part.
"""

from __future__ import annotations

from typing import Final

from watermark.schemes.engines.base import Engine
from watermark.schemes.engines.murmur import MurmurGumbel
from watermark.schemes.engines.permuted import PermutedList
from watermark.schemes.engines.philox import PhiloxGumbel, PhiloxList
from watermark.schemes.engines.synthid import SynthIDHash, SynthIDTable

ENGINES: Final[tuple[type[Engine], ...]] = (
    PermutedList,
    SynthIDTable,
    SynthIDHash,
    PhiloxGumbel,
    PhiloxList,
    MurmurGumbel,
)
__all__ = [
    "ENGINES",
    "Engine",
    "MurmurGumbel",
    "PermutedList",
    "PhiloxGumbel",
    "PhiloxList",
    "SynthIDHash",
    "SynthIDTable",
]
