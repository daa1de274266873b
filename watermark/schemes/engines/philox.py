"""vLLM's own marks, which draw from Philox 4x32-10 (Salmon et al. 2011): `gumbel`, `dual_key_gumbel` and `sbw`.

`gumbel` takes the token whose keyed uniform number u, raised to 1 / p, is the largest. The coins are the leading bits
of u: fair and independent under the null. In marked text u is near 1, so that all of them come up more often.

`sbw` ("stateless Bernoulli watermark") is a green list without a list: a token is green if a keyed number lies below a
bound. Its `selfhash` seeds by the candidate and the one token of its window whose product with it is least.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from watermark import prf
from watermark.errors import MarkError
from watermark.io.fields import Types, either, is_null, is_number
from watermark.schemes.engines.base import FINITE, MOST_WIDTH, U64, Engine, keys_of
from watermark.schemes.engines.permuted import LEFT, SELF, is_seeding
from watermark.schemes.greenlist import GreenList

LEADING: Final = 4
"""Leading bits that a uniform number is read as."""

_ROUNDS: Final = 10
_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_INCREMENTS: Final = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_CONTEXT: Final = 0x574D4358
_TOKEN: Final = 0x574D544B
_MASK: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)

Words = tuple[U64, U64, U64, U64]


def philox(counter: Words, key: tuple[U64, U64]) -> Words:
    """Philox 4x32-10: four words of 32 bits from four and a key of two, each uint64 [N]."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = second >> _HALF ^ b ^ k0, second & _MASK, first >> _HALF ^ d ^ k1, first & _MASK
        k0, k1 = k0 + _INCREMENTS[0] & _MASK, k1 + _INCREMENTS[1] & _MASK
    return a, b, c, d


def gumbel_words(key: int, contexts: prf.Ints, tokens: prf.Ints) -> U64:
    """The 32 bits of which vLLM makes the uniform number of each of N pairs: uint64 [N].

    The context is absorbed four tokens at a time; the last call of Philox is for four neighbouring tokens.
    """
    number, width = contexts.shape
    low, high = np.full(number, key & 0xFFFFFFFF, np.uint64), np.full(number, key >> 32, np.uint64)
    zero = np.zeros(number, np.uint64)
    state: Words = (zero + np.uint64(_CONTEXT), zero + np.uint64(width), zero, zero)
    for start in range(0, width, 4):
        block = [
            contexts[:, start + i].astype(np.uint64) if start + i < width else _MASK - np.uint64(i) for i in range(4)
        ]
        a, b, c, d = (word ^ added for word, added in zip(state, block, strict=True))
        state = philox((a, b, c, d), (low ^ np.uint64(start), high))
    ids = tokens.astype(np.uint64)
    words = philox((ids >> np.uint64(2), *state[:3]), (low ^ state[3], high ^ np.uint64(_TOKEN)))
    return _chosen(words, ids)


def _chosen(words: Words, ids: U64) -> U64:
    """Of four words the one of each id."""
    return np.asarray(np.choose((ids & np.uint64(3)).astype(np.int64), words), np.uint64)


@dataclass(frozen=True)
class PhiloxGumbel(Engine):
    """vLLM's `gumbel` and `dual_key_gumbel`: four coins a pair, or eight where both keys are read.

    Attributes:
        alpha: how often the second key chooses, in `dual_key_gumbel`; None: there is one key, as in `gumbel`. A key
            that chooses less often than 29 % of the time is not read: its coins would add more noise than signal.

    Raises:
        MarkError: alpha is of another type, or not between 0 and 1.
    """

    name: ClassVar[str] = "philox-gumbel"
    prf_name: ClassVar[str] = "philox4x32-10-v1"
    FIELDS: ClassVar[Types] = {"alpha": (either(is_null, is_number), "a number, or null")}
    needs_sampling: ClassVar[bool] = True

    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise MarkError("alpha must lie between 0 and 1")

    @property
    def coins(self) -> int:
        return LEADING * len(self._read)

    @property
    def _read(self) -> tuple[bytes, ...]:
        """What the keys that are read are derived by: b"" for the key itself."""
        if self.alpha is None:
            return (b"",)
        shares = {b"key_a": 1 - self.alpha, b"key_b": self.alpha}
        return tuple(name for name, share in shares.items() if share >= 1 - 0.5**0.5)

    def bits(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.Ints:
        (secret,) = keys_of(key)
        found = np.zeros(len(tokens), np.uint64)
        for name in self._read:
            drawn = gumbel_words(derived(secret, name) if name else secret, contexts, tokens)
            found = found << np.uint64(LEADING) | drawn >> np.uint64(32 - LEADING)
        return found


def derived(key: int, domain: bytes) -> int:
    """A key of vLLM's `dual_key_gumbel`: 64 bits of SHA-256 over the domain and the key."""
    return int.from_bytes(hashlib.sha256(domain + key.to_bytes(8, "big")).digest()[:8], "big")


@dataclass(frozen=True)
class PhiloxList(Engine):
    """vLLM's `sbw`: one coin a pair.

    Attributes:
        seeding: `lefthash`, by the sum of the context's tokens, or `selfhash`.
        gamma: chance of a token to be green.
        delta: what a green token's logit is raised by.

    Raises:
        MarkError: a parameter is of another type, or out of its range.
    """

    name: ClassVar[str] = "philox-list"
    prf_name: ClassVar[str] = "sbw-philox4x32-10"
    FIELDS: ClassVar[Types] = {
        "seeding": (is_seeding, f"'{LEFT}' or '{SELF}'"),
        "gamma": (is_number, "a number"),
        "delta": (is_number, "a number"),
    }
    CHECKS: ClassVar[Types] = {"delta": FINITE}
    key_bits: ClassVar[int] = 63

    seeding: str
    gamma: float
    delta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < 1 or not 0 < self.bound < 1 << 31:
            raise MarkError("gamma must lie between 0 and 1")

    @property
    def bound(self) -> int:
        """Green means that 31 bits lie below it."""
        return int(self.gamma * ((1 << 31) - 1))

    @property
    def rate(self) -> float:
        return self.bound / (1 << 31)

    @property
    def shared(self) -> bool:
        return True  # a sum has many contexts, and a candidate many windows with the same anchor

    @property
    def widths(self) -> range:
        return range(1 if self.seeding == LEFT else 0, MOST_WIDTH + 1)

    @property
    def lift(self) -> float | None:
        return float(self.delta)

    @property
    def like(self) -> GreenList | None:
        return GreenList(self.gamma, self.delta)

    def bits(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.Ints:
        seeds, ids = self._seeds(key, contexts, tokens), tokens.astype(np.uint64)
        zero = np.zeros(len(ids), np.uint64)
        words = philox((ids >> np.uint64(2), zero, zero, zero), (seeds & _MASK, seeds >> _HALF))
        return ((_chosen(words, ids) & np.uint64(0x7FFFFFFF)) < self.bound).astype(np.uint8)

    def inputs(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.U32:
        """The seed, in two words, and the token. A seed of 0 depends on no key: all its coins count as one."""
        seeds = self._seeds(key, contexts, tokens)
        rows = [seeds & _MASK, seeds >> _HALF, np.where(seeds == 0, np.uint64(0), tokens.astype(np.uint64))]
        return np.column_stack(rows).astype(np.uint32)

    def _seeds(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> U64:
        """64 bits for each of N pairs. Products wrap, as in torch."""
        (secret,) = keys_of(key)
        factor = np.array([secret], np.uint64)
        if self.seeding == LEFT:
            product: U64 = factor * contexts.astype(np.uint64).sum(axis=1)
            return product
        hashed = jenkins(np.column_stack([contexts, tokens]))
        products = (factor * hashed * hashed[:, -1:]).astype(np.int64)
        return np.asarray(products.min(axis=1), np.int64).astype(np.uint64)


def jenkins(ids: prf.Ints) -> U64:
    """The hash of a token, of 32 bits with a sign, in 64 bits: uint64 of the shape of ids."""
    i = (ids.astype(np.int64) + 1).astype(np.int32)
    for shift, right in ((6, False), (17, True), (9, False), (4, None), (3, False), (10, None), (15, True)):
        if right is False:
            i = i - (i << np.int32(shift))
        else:
            i = i ^ (i >> np.int32(shift) if right else i << np.int32(shift))
    return np.asarray(i, np.int64).astype(np.uint64)
