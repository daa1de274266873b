"""What the marks of other engines share: keys that are numbers, and coins that are the bits of a number."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from watermark import prf
from watermark.errors import MarkError
from watermark.io.fields import Types, wrong_field
from watermark.schemes.greenlist import GreenList

BLIND: Final = 32
KEY_BYTES: Final = 8
MOST_WIDTH: Final = 64
FINITE: Final = (math.isfinite, "a finite number")
"""What a number must be that FIELDS of a scheme name."""

U64 = npt.NDArray[np.uint64]


class Engine:
    """The mark of another engine: which coins its keyed function gives a pair.

    Its secret is 32 random bytes and then its keys, each as 8 bytes: engines' keys can be small numbers, which a
    commitment without these bytes would let anybody guess.

    Attributes:
        coins: how many a pair has.
        rate: the chance that a coin comes up under the null.
        shared: pairs of different contexts may have the same coins, so that no context tells which were shown before.
        lift: the log odds by which marked text raises a coin; None: it depends on the text.
        decoys: how many decoy keys a test draws where nobody said: fewer than of our own marks, which are faster.
    """

    name: ClassVar[str]
    prf_name: ClassVar[str]
    FIELDS: ClassVar[Types]
    CHECKS: ClassVar[Types] = MappingProxyType({})
    operation: ClassVar[str] = ""
    embeds: ClassVar[bool] = False
    whole_rows: ClassVar[bool] = False
    needs_sampling: ClassVar[bool] = False
    key_bits: ClassVar[int] = 64
    decoys: ClassVar[int] = 20

    def __post_init__(self) -> None:
        wrong = wrong_field(vars(self), self.FIELDS) or wrong_field(vars(self), self.CHECKS)
        if wrong is not None:
            raise MarkError(wrong)

    @property
    def coins(self) -> int:
        return 1

    @property
    def rate(self) -> float:
        return 0.5

    @property
    def shared(self) -> bool:
        return False

    @property
    def widths(self) -> range:
        """Widths that a mark of this scheme can have."""
        return range(1, MOST_WIDTH + 1)

    @property
    def lift(self) -> float | None:
        return None

    @property
    def like(self) -> GreenList | None:
        """The green list whose measured students stand for this scheme's; None: nobody measured any."""
        return None

    @property
    def keys(self) -> int:
        """How many keys the engine has."""
        return 1

    @property
    def period(self) -> int:
        """Keys that agree modulo this number give the same coins."""
        return 1 << 64

    @property
    def layers_in_all(self) -> int | None:
        """How many layers there are for a key to choose from; None: each key has coins of its own."""
        return None

    @property
    def key_bytes(self) -> int:
        """Length of all keys."""
        return KEY_BYTES * self.keys

    @property
    def secret_bytes(self) -> int:
        """Length of a secret."""
        return BLIND + self.key_bytes

    @property
    def parameters(self) -> dict[str, Any]:
        """What a mark file and a card say of it."""
        return {name: getattr(self, name) for name in self.FIELDS}

    @property
    def committed(self) -> dict[str, Any]:
        """What the commitment covers beyond `parameters`: nothing."""
        return {}

    def secret_of(self, keys: Sequence[int]) -> bytes:
        """The secret that holds some keys: 64-bit numbers, signed or not. Raises MarkError for others, or too many."""
        if len(keys) != self.keys or any(not -(1 << 63) <= key < 1 << 64 for key in keys):
            raise MarkError(f"want {self.keys} {'key' if self.keys == 1 else 'keys'} of at most 64 bits")
        return secrets.token_bytes(BLIND) + b"".join((key % (1 << 64)).to_bytes(KEY_BYTES, "big") for key in keys)

    def check_secret(self, secret: bytes) -> None:
        """Raises MarkError where two keys give the same coins, which would be counted as two."""
        keys = [key % self.period for key in keys_of(secret[BLIND:])]
        if len(set(keys)) < len(keys):
            raise MarkError("two of the keys give the same coins: each coin would count twice", "name each key once")

    def new_secret(self) -> bytes:
        """A secret with keys from the operating system's generator."""
        return self.secret_of([secrets.randbelow((1 << self.key_bits) - 1) + 1 for _ in range(self.keys)])

    def child_secret(self, secret: bytes, label: str) -> bytes:
        """Raises MarkError: the engine knows no children."""
        raise MarkError(
            "a mark of another engine has no children", "give the engine another key, and import that as another mark"
        )

    def decoy_secret(self, commitment: bytes, number: int) -> bytes:
        """A secret with keys that follow from the commitment of the mark that the decoy stands beside."""
        drawn = [prf.hkdf(commitment, "stillmark/v1/decoy", f"{number} {i}") for i in range(self.keys)]
        return self.secret_of([int.from_bytes(key) % ((1 << self.key_bits) - 1) + 1 for key in drawn])

    def prf_key(self, secret: bytes, width: int) -> bytes:
        """The keys, 8 bytes each."""
        return secret[BLIND:]

    def bits(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.Ints:
        """The coins of N pairs as the lowest bits of a number: integers [N]."""
        raise NotImplementedError

    def inputs(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.U32:
        """What the engine's keyed function reads of N pairs, uint32 [N, any]."""
        return np.column_stack([contexts, tokens]).astype(np.uint32, copy=False)

    def layer_scores(self, contexts: prf.Ints, tokens: prf.Ints, weights: prf.F64) -> prf.F64 | None:
        """The score, sum of weight times (coin - rate), of every layer that a key can choose, on N pairs.

        None where there is no `layers_in_all`: then the coins of pairs that read other inputs are independent.
        """
        return None

    def read(self, bits: prf.Ints) -> npt.NDArray[np.bool_]:
        """The coins of N pairs, bool [N, coins], from `bits`."""
        return (bits.astype(np.uint64)[:, None] >> np.arange(self.coins, dtype=np.uint64) & np.uint64(1)).astype(
            np.bool_
        )

    def hits(self, bits: prf.Ints) -> prf.I64:
        """How many coins of N pairs come up, int64 [N], from the same."""
        found: prf.I64 = np.bitwise_count(bits.astype(np.uint64)).astype(np.int64)
        return found

    def count_hits(self, keys: Sequence[bytes], contexts: prf.Ints, tokens: prf.Ints) -> Iterator[prf.I64]:
        """How many coins of N pairs come up under each of many keys: int64, a key at a time, in order."""
        return (self.hits(self.bits(key, contexts, tokens)).sum(keepdims=True) for key in keys)

    def tilted(self, cells: prf.F64, strength: float) -> prf.F64:
        """The probabilities of a coin's two sides, float64 [P, 2], with the log odds of green raised by `strength`.

        For a scheme with a `lift`.
        """
        tilted: prf.F64 = cells * np.exp([0.0, strength])
        return np.asarray(tilted / tilted.sum(axis=1, keepdims=True), np.float64)

    @staticmethod
    def tables(schemes: Sequence[Any]) -> tuple[npt.NDArray[Any], ...]:
        """Nothing: no kernel of ours embeds it."""
        return ()


def keys_of(key: bytes) -> list[int]:
    """The keys in what `Engine.prf_key` gives, unsigned."""
    return [int.from_bytes(key[i : i + KEY_BYTES], "big") for i in range(0, len(key), KEY_BYTES)]


def distinct(values: U64) -> tuple[U64, prf.I64]:
    """The distinct values of some, and which of them each is."""
    found, which = np.unique(values, return_inverse=True)
    return found, which.ravel().astype(np.int64)
