"""chacha8-v1: the one source of randomness, as array code in numpy.

The PRF maps (key, context, token) to 16 bits. It is the ChaCha block function (RFC 8439) with eight
rounds, read at random access:

    counter = (token >> 9) << 4 | (token & 15)    which block
    word    = (token >> 4) & 15                   which of its sixteen 32-bit words
    half    = (token >> 8) & 1                    0: low sixteen bits, 1: high

so one block of sixteen counters covers 512 tokens, and neighbouring tokens share a word index. The
context's last three tokens are the nonce; a context of four to seven tokens first turns its oldest
ones into a key of its own through HChaCha (as XChaCha does). Distinct (context, token) pairs never
share an input: there is no hash of the context and hence no collision.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from watermark.secret import Secret, sealed

VERSION: Final = "chacha8-v1"
ROUNDS: Final = 8
MAX_WIDTH: Final = 7
NO_TOKEN: Final = 0xFFFFFFFF
"""Fills the unused words of a long context; a token id therefore stays below 2**32 - 1."""

CONSTANTS: Final = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)
QUARTER_ROUNDS: Final = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip

_CHUNK: Final = 4096  # pairs at a time: sixteen state words of this length stay in the L2 cache

U32 = npt.NDArray[np.uint32]
U16 = npt.NDArray[np.uint16]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]


def hkdf(secret: bytes, salt: str, info: str) -> Secret:
    """HKDF-SHA256 (RFC 5869) to 32 bytes; `salt` and `info` are encoded as UTF-8."""
    return Secret(HKDF(SHA256(), 32, salt.encode(), info.encode()).derive(secret))


def prf_key(secret: bytes, scheme: str, width: int) -> Secret:
    """The 32-byte ChaCha key of one scheme at one width. `secret`: 32 bytes."""
    return hkdf(secret, "stillmark/v1/prf", f"{scheme}/width={width}")


def key_words(key: bytes) -> U32:
    """A 32-byte key as eight little-endian words, uint32 [8]."""
    if len(key) != 32:
        raise ValueError(f"a PRF key has 32 bytes, not {len(key)}")
    return np.frombuffer(key, dtype="<u4").astype(np.uint32)


def _permute(state: list[U32], rounds: int) -> None:
    """`rounds` ChaCha rounds in place on sixteen arrays of one shape."""
    tmp = np.empty_like(state[0])

    def rotl(x: U32, n: int) -> None:
        np.right_shift(x, 32 - n, out=tmp)
        np.left_shift(x, n, out=x)
        np.bitwise_or(x, tmp, out=x)

    for _ in range(rounds // 2):
        for a, b, c, d in QUARTER_ROUNDS:
            sa, sb, sc, sd = state[a], state[b], state[c], state[d]
            sa += sb
            sd ^= sa
            rotl(sd, 16)
            sc += sd
            sb ^= sc
            rotl(sb, 12)
            sa += sb
            sd ^= sa
            rotl(sd, 8)
            sc += sd
            sb ^= sc
            rotl(sb, 7)


def block(key: list[U32], counter: U32, nonce: list[U32], rounds: int = ROUNDS) -> list[U32]:
    """ChaCha blocks, one an element.

    key: eight arrays, counter: one, nonce: three, all uint32 and broadcastable to `counter`'s shape.
    Returns the sixteen output words after the feed-forward addition (RFC 8439, section 2.3).
    """
    words = [np.uint32(c) for c in CONSTANTS] + key + [counter] + nonce
    start = [np.broadcast_to(np.asarray(w, np.uint32), counter.shape) for w in words]
    state = [w.copy() for w in start]
    _permute(state, rounds)
    for word, initial in zip(state, start, strict=True):
        word += initial
    return state


def hchacha(key: list[U32], inputs: list[U32], rounds: int = ROUNDS) -> list[U32]:
    """HChaCha (draft-irtf-cfrg-xchacha, section 2.2): eight key words out of a key and four words."""
    words = [np.uint32(c) for c in CONSTANTS] + key + inputs
    state = [np.broadcast_to(np.asarray(w, np.uint32), inputs[0].shape).copy() for w in words]
    _permute(state, rounds)
    return state[:4] + state[12:]


def _address(key: U32, contexts: U32) -> tuple[list[U32], list[U32]]:
    """Key and nonce words for contexts uint32 [N, width]: eight and three arrays."""
    width = contexts.shape[1]
    columns = [contexts[:, i] for i in range(width)]
    zero = np.zeros(len(contexts), np.uint32)
    nonce = ([zero] * 3 + columns)[-3:]
    if width <= 3:
        return [key[i : i + 1] for i in range(8)], nonce
    oldest = [np.full(len(contexts), NO_TOKEN, np.uint32)] * 4 + columns[:-3]
    return hchacha([key[i : i + 1] for i in range(8)], oldest[-4:]), nonce


def check(contexts: Ints, tokens: Ints) -> None:
    """Raises ValueError unless these are contexts [N, width] and tokens [N] that the PRF takes."""
    if tokens.ndim != 1 or contexts.ndim != 2 or len(contexts) != len(tokens):
        raise ValueError(f"want contexts [N, width] and tokens [N], got {contexts.shape} and {tokens.shape}")
    if contexts.shape[1] > MAX_WIDTH:
        raise ValueError(f"width is {contexts.shape[1]}; chacha8-v1 takes 0 to {MAX_WIDTH}")
    for name, ids in (("contexts", contexts), ("tokens", tokens)):
        if ids.size and (ids.min() < 0 or ids.max() >= NO_TOKEN):
            raise ValueError(f"{name} hold an id outside 0 .. 2**32 - 2")


def shuffle(key: bytes, number: int) -> npt.NDArray[np.int64]:
    """A keyed permutation, uniform up to ties of 64 bits: int64 [number]. The numbers are sorted by their draws.

    Number i draws `bits(key, (i,), j)` for j from 0 to 3, the lowest sixteen first.
    """
    index = np.repeat(np.arange(number), 4)
    words = bits(key, index[:, None], np.tile(np.arange(4), number)).astype(np.uint64).reshape(-1, 4)
    return np.argsort(words @ (np.uint64(1) << np.arange(0, 64, 16, dtype=np.uint64)), kind="stable")


@sealed
def bits(key: bytes, contexts: Ints, tokens: Ints) -> U16:
    """The PRF's output for N pairs.

    Args:
        key: 32 bytes, from `prf_key`.
        contexts: integers [N, width], oldest token first, width 0 to 7.
        tokens: integers [N].

    Returns:
        uint16 [N], uniform and independent over distinct pairs.
    """
    contexts, tokens = np.asarray(contexts), np.asarray(tokens)
    check(contexts, tokens)
    words = key_words(key)
    out = np.empty(len(tokens), np.uint16)
    for lo in range(0, len(tokens), _CHUNK):
        token = tokens[lo : lo + _CHUNK].astype(np.uint32)
        key_block, nonce = _address(words, contexts[lo : lo + _CHUNK].astype(np.uint32))
        counter = ((token >> 9) << 4 | (token & 15)).astype(np.uint32)
        blocks = np.stack(block(key_block, counter, nonce))
        word = blocks[(token >> 4) & 15, np.arange(len(token))]
        out[lo : lo + _CHUNK] = word >> (((token >> 8) & 1) << 4)
    return out
