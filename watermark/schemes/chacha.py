"""What our own schemes share: their bits come from `chacha8-v1`, one draw for each distinct pair."""

from __future__ import annotations

import secrets
from typing import ClassVar, Final

import numpy as np

from watermark import prf
from watermark.schemes.counting import pair_bits

SECRET_BYTES: Final = 32


class ChaCha:
    """The part of a scheme that reads `chacha8-v1`. Distinct pairs never share its input."""

    prf_name: ClassVar[str] = prf.VERSION
    embeds: ClassVar[bool] = True
    widths: ClassVar[range] = range(prf.MAX_WIDTH + 1)
    shared: ClassVar[bool] = False
    decoys: ClassVar[int] = 200
    secret_bytes: ClassVar[int] = SECRET_BYTES
    key_bytes: ClassVar[int] = SECRET_BYTES
    layers_in_all: ClassVar[None] = None

    name: ClassVar[str]

    def prf_key(self, secret: bytes, width: int) -> bytes:
        """The key of the PRF, 32 bytes."""
        return prf.prf_key(secret, self.name, width)

    def child_secret(self, secret: bytes, label: str) -> bytes:
        """The secret of the child for a label."""
        return prf.hkdf(secret, "stillmark/v1/derive", label)

    def check_secret(self, secret: bytes) -> None:
        """Nothing: each secret gives independent coins."""

    def new_secret(self) -> bytes:
        """A secret from the operating system's generator."""
        return secrets.token_bytes(self.secret_bytes)

    def decoy_secret(self, commitment: bytes, number: int) -> bytes:
        """The secret of a decoy, which follows from the commitment of the mark that it stands beside."""
        return prf.hkdf(commitment, "stillmark/v1/decoy", str(number))

    def layer_scores(self, contexts: prf.Ints, tokens: prf.Ints, weights: prf.F64) -> prf.F64 | None:
        """None: each key has coins of its own, so that those of distinct pairs are independent."""
        return None

    def bits(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.U16:
        """The PRF's bits of N pairs, uint16 [N]."""
        return pair_bits(key, contexts, tokens)

    def inputs(self, key: bytes, contexts: prf.Ints, tokens: prf.Ints) -> prf.U32:
        """What the PRF reads of N pairs, uint32 [N, width + 1]: all of them."""
        return np.column_stack([contexts, tokens]).astype(np.uint32, copy=False)
