"""Green lists that are the first part of a permutation of the vocabulary: transformers, and the code of KGW's authors.

`lefthash` draws the permutation by the last token alone, whatever `context_width` says. `selfhash` draws it anew for
every candidate: by the candidate, and by the one token of its window (itself included) whose product with it is least,
the anchor. So a coin belongs to an anchor and a token, and not to the window. The permutation is `torch.randperm` with
a generator on the CPU: a Mersenne Twister that reads 32 bits of the seed (a GPU draws other lists).

The list has a fixed size, so that the coins of one list are drawn without replacement: of V tokens any two of them
correlate by -1 / (V - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from watermark import prf
from watermark.errors import MarkError
from watermark.io.fields import Types, either, is_flag, is_int, is_null, is_number
from watermark.schemes.engines.base import FINITE, MOST_WIDTH, Engine, distinct, keys_of
from watermark.schemes.greenlist import GreenList

LEFT: Final = "lefthash"
SELF: Final = "selfhash"
TABLE: Final = 1_000_003
"""Entries of the table by which selfhash hashes a token."""

_MODULUS: Final = (1 << 64) - 1
_MOST_KNOWN: Final = 1 << 22  # answers that are kept: the parts of the evidence ask for the same again
_FEW: Final = 16


def is_seeding(value: Any) -> bool:
    """How a list is seeded."""
    return value in (LEFT, SELF)


@dataclass(frozen=True)
class PermutedList(Engine):
    """A green list of `size * gamma` tokens, rounded down, whose logits are raised by `delta`.

    Attributes:
        seeding: `lefthash` or `selfhash`.
        gamma: fraction of the vocabulary that is green.
        delta: what a green token's logit is raised by.
        size: tokens that are permuted: the width of the model's logits, which may exceed the tokenizer's size.
        table_seed: of the table that selfhash hashes tokens by; None: the key itself.
        last: the green tokens are the last of the permutation, and not the first.

    Raises:
        MarkError: a parameter is of another type, or out of its range.
    """

    name: ClassVar[str] = "permuted-list"
    prf_name: ClassVar[str] = "torch-randperm-cpu"
    FIELDS: ClassVar[Types] = {
        "seeding": (is_seeding, f"'{LEFT}' or '{SELF}'"),
        "gamma": (is_number, "a number"),
        "delta": (is_number, "a number"),
        "size": (is_int, "an integer"),
        "table_seed": (either(is_null, is_int), "an integer, or null"),
        "last": (is_flag, "true or false"),
    }
    CHECKS: ClassVar[Types] = {"delta": FINITE}

    key_bits: ClassVar[int] = 32

    seeding: str
    gamma: float
    delta: float
    size: int
    table_seed: int | None = None
    last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.size < prf.NO_TOKEN or not 0 < self.gamma < 1 or not 0 < self.green < self.size:
            raise MarkError("of 2 tokens or more some must be green, and some not")

    @property
    def green(self) -> int:
        """How many tokens a list has."""
        return int(self.size * self.gamma)

    @property
    def rate(self) -> float:
        return self.green / self.size

    @property
    def lift(self) -> float | None:
        return float(self.delta)

    @property
    def like(self) -> GreenList | None:
        return GreenList(self.gamma, self.delta)

    @property
    def shared(self) -> bool:
        return self.seeding == SELF

    @property
    def widths(self) -> range:
        return range(1, 2) if self.seeding == LEFT else range(MOST_WIDTH + 1)

    def bits(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.Ints:
        number = self.size - self.green if self.last else self.green
        code = self._seeds(key, contexts, tokens).astype(np.uint64) << np.uint64(32) | tokens.astype(np.uint64)
        asked, which = distinct(code)
        first = np.array(_first_part(self.size, number, asked.tolist()), np.bool_)
        found: prf.Ints = (first != self.last)[which].astype(np.uint8)
        return found

    def inputs(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.U32:
        """The seed and the token. A seed of 0, of the token 0 alone, depends on no key: all its coins count as one."""
        seeds = self._seeds(key, contexts, tokens)
        return np.column_stack([seeds, np.where(seeds == 0, 0, tokens)]).astype(np.uint32)

    def _seeds(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.I64:
        """What seeds the generator for N pairs: the 32 bits of it that are read, int64 [N]."""
        (secret,) = keys_of(key)
        if self.seeding == LEFT:
            last, which = distinct(contexts[:, -1].astype(np.uint64))
            seeds = [secret * token % _MODULUS % (1 << 32) for token in last.tolist()]
            return np.array(seeds, np.int64)[which]
        seed = secret if self.table_seed is None else self.table_seed
        window = np.column_stack([contexts, tokens]).astype(np.int64)
        hashed = _table(seed % (1 << 32), int(window.max(initial=0)) + 1)[window]
        with np.errstate(over="ignore"):  # 64 bits wrap, as in torch, and the least of what comes out is taken
            products = np.uint64(secret).astype(np.int64) * hashed * hashed[:, -1:]
        least = products.min(axis=1)
        wrapped = least.astype(np.uint64) - np.uint64(1) * (least < 0)  # Python's least % (2**64 - 1)
        found: prf.I64 = (wrapped & np.uint64(0xFFFFFFFF)).astype(np.int64)
        return found


def _first_part(size: int, number: int, asked: list[int]) -> list[bool]:
    """Which of some pairs of a seed and a token (`seed << 32 | token`, ascending) are in the first part of the
    permutation that the seed draws of so many tokens."""
    known = _known(size, number)
    if len(known) > _MOST_KNOWN:
        known.clear()
    missing = [code for code in asked if code not in known]
    for seed, codes in groupby(missing, lambda code: code >> 32):
        tokens = [code & 0xFFFFFFFF for code in codes]
        members = first_part(seed, size, number, tokens)
        known.update(zip([seed << 32 | token for token in tokens], members, strict=True))
    return [known[code] for code in asked]


@lru_cache(maxsize=4)
def _known(size: int, number: int) -> dict[int, bool]:
    return {}


def first_part(seed: int, size: int, number: int, tokens: Sequence[int]) -> list[bool]:
    """Which of some tokens are among the first `number` of `torch.randperm(size)` with a CPU generator of this seed.

    Torch shuffles from the left: step i swaps what stands at i with what stands at i + r % (size - i), with the
    generator's next number r. Each token is followed to where it goes, which takes one or two swaps.
    """
    steps = np.arange(number, dtype=np.uint32)
    other = steps + numbers(seed, number) % (np.uint32(size) - steps)  # what each step swaps with
    earliest: npt.NDArray[np.int64] | None = None
    if len(tokens) > _FEW:
        earliest = np.full(size, number)
        earliest[other[::-1]] = steps[::-1]
    return [_reaches(token, other, None if earliest is None else int(earliest[token])) for token in tokens]


def _reaches(token: int, other: npt.NDArray[np.uint32], earliest: int | None) -> bool:
    """Whether a token gets into the first part. earliest: the first step that swaps with its place; None: not known."""
    start, place, number = 0, token, len(other)
    while True:
        if earliest is None:
            met = np.flatnonzero(other[start:] == place)
            earliest = start + int(met[0]) if len(met) else number
        if earliest <= min(place, number - 1):
            return True
        if place >= number:
            return False
        start, place, earliest = place + 1, int(other[place]), None  # step `place` sends it on


_numbers_of: Final = np.random.RandomState(0)


def numbers(seed: int, number: int) -> npt.NDArray[np.uint32]:
    """What torch's CPU generator draws after `manual_seed(seed)`, of whose bits it takes 32: a Mersenne Twister."""
    _numbers_of.seed(seed)
    return _numbers_of.randint(0, 1 << 32, number, np.uint32)


@lru_cache(maxsize=4)
def _table(seed: int, number: int) -> prf.I64:
    """The first entries of a permutation of TABLE numbers, each plus 1, by its seed."""
    moved: dict[int, int] = {}
    found = []
    for i, drawn in enumerate(numbers(seed, number).tolist()):
        j = i + drawn % (TABLE - i)
        found.append(moved.get(j, j))
        moved[j] = moved.pop(i, i)
    return np.array(found, np.int64) + 1
