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


def texts_of(scored: Mapping[str, Any]) -> list[str]:
    """What stands in the leaves: everything but columns, of the pairs and of a look, and then each pair.

    scored: as `verify.evidence.scored.Scored.to_dict` gives it.
    """
    parts = _parts(scored)
    columns = ("contexts", "tokens", "weights", "answers", "look")
    heads = [{name: one for name, one in part.items() if name not in columns} for part in parts]
    texts = [json.dumps(head, sort_keys=True) for head in heads]
    for part in parts:
        several = [*part["contexts"], part["tokens"], *part["weights"]]
        several += [part["answers"]] if "answers" in part else []
        texts += map(json.dumps, zip(*several, strict=True))
    return texts


def _parts(scored: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    look = scored.get("look")
    return [scored, *([look] if look else [])]


def leaf_salt(salt: bytes, number: int) -> bytes:
    """The salt of one leaf, from that of the test."""
    return hmac.digest(salt, number.to_bytes(8, "big"), "sha256")


def leaf(text: str, own: bytes) -> bytes:
    """The hash of a leaf. own: its salt."""
    return hashlib.sha256(_LEAF + own + text.encode()).digest()


def leaves_of(scored: Mapping[str, Any], salt: bytes) -> list[bytes]:
    """The hashes of all leaves. salt: 32 bytes, of the test."""
    return [leaf(text, leaf_salt(salt, i)) for i, text in enumerate(texts_of(scored))]


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


def prove(scored: Mapping[str, Any], salt: bytes, pairs: Sequence[int]) -> list[dict[str, Any]]:
    """Some pairs, each with what leads from it to the root, for JSON. pairs: their numbers, from 1."""
    texts, leaves, first = texts_of(scored), leaves_of(scored, salt), len(_parts(scored))
    found = []
    for pair in pairs:
        number = first + pair - 1
        own, path = leaf_salt(salt, number).hex(), _path(leaves, number)
        found.append({"pair": pair, "text": texts[number], "salt": own, "path": path})
    return found


def _path(leaves: Sequence[bytes], number: int) -> list[list[str]]:
    """The neighbours on the way from a leaf to the root: on which side each stands, and its hash."""
    path, level, at = [], list(leaves), number
    while len(level) > 1:
        beside = at ^ 1
        if beside < len(level):
            path.append(["left" if beside < at else "right", level[beside].hex()])
        above = [hashlib.sha256(_NODE + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level, at = above + ([level[-1]] if len(level) % 2 else []), at // 2
    return path


def sides(number: int, leaves: int) -> list[str]:
    """On which side the neighbours stand on the way from a leaf to the root, of a tree of so many leaves.

    >>> sides(2, 3)
    ['left']
    """
    found = []
    while leaves > 1:
        if number ^ 1 < leaves:
            found.append("left" if number % 2 else "right")
        number, leaves = number // 2, (leaves + 1) // 2
    return found


def root_by(text: str, own: bytes, path: Sequence[Sequence[str]]) -> str:
    """The root to which a leaf and its path lead, 64 hex digits.

    Raises:
        ValueError: the path is malformed.

    >>> scored = {"rule": "binomial", "n": 2, "contexts": [[5, 6]], "tokens": [7, 8], "weights": []}
    >>> (one,) = prove(scored, bytes(32), [2])
    >>> one["text"], root_by(one["text"], bytes.fromhex(one["salt"]), one["path"]) == root_of(scored, bytes(32))
    ('[6, 8]', True)
    """
    here = leaf(text, own)
    for side, beside in path:
        if side not in ("left", "right") or len(other := bytes.fromhex(beside)) != 32:
            raise ValueError("a step of a path has a side and a hash")
        here = hashlib.sha256(_NODE + (other + here if side == "left" else here + other)).digest()
    return here.hex()
