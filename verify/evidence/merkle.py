"""A Merkle root over pairs that are not shown, as RFC 6962 has it, with a salt in each leaf.

The pairs of a text can be guessed, so that a bare hash would show them: each leaf has a salt of its own, derived from
one that stays with the pairs. With it all pairs can be shown, or some of them alone, each with a proof.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"


def leaves_of(scored: Mapping[str, Any], salt: bytes) -> list[bytes]:
    """The hashes of what stands before the pairs (everything but columns), and of each pair; of a look too.

    scored: as `verify.evidence.scored.Scored.to_dict` gives it. salt: 32 bytes.
    """
    look = scored.get("look")
    parts = [scored, *([look] if look else [])]
    columns = ("contexts", "tokens", "weights", "answers", "look")
    texts = [
        json.dumps({name: one for name, one in part.items() if name not in columns}, sort_keys=True) for part in parts
    ]
    for part in parts:
        several = [*part["contexts"], part["tokens"], *part["weights"]]
        several += [part["answers"]] if "answers" in part else []
        texts += map(json.dumps, zip(*several, strict=True))
    return [_leaf(text.encode(), salt, i) for i, text in enumerate(texts)]


def _leaf(text: bytes, salt: bytes, number: int) -> bytes:
    own = hmac.digest(salt, number.to_bytes(8, "big"), "sha256")
    return hashlib.sha256(_LEAF + own + text).digest()


def root_of(scored: Mapping[str, Any], salt: bytes) -> str:
    """The root over the pairs of a test, 64 hex digits; arguments as for `leaves_of`."""
    return root(leaves_of(scored, salt)).hex()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root of a tree in which a node without a neighbour moves up, as in RFC 6962.

    >>> a, b, c = (hashlib.sha256(bytes([i])).digest() for i in range(3))
    >>> node = hashlib.sha256(b"\\x01" + a + b).digest()
    >>> root([a, b, c]) == hashlib.sha256(b"\\x01" + node + c).digest()
    True
    """
    level = list(leaves)
    while len(level) > 1:
        above = [hashlib.sha256(_NODE + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = above + ([level[-1]] if len(level) % 2 else [])
    return level[0] if level else hashlib.sha256(b"").digest()
