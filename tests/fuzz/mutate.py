"""JSON with a few places changed, bytes with a few spoiled: each from a generator, so that a case can be made again."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any, Final

ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 2**31, 2**32, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "\x00", "\x1b[2K", "\u202e", "\u2028", "\ud800", "a" * 300, [], {}, [[]], [None], [True], {"": None}, [1, [2]],
    "output_ids", "-Infinity", "1e999", [-1], [2**32], ["5"], {"5": {"logprob": -1.5}}, "data: {}",
)  # fmt: skip

NAMES: Final = (
    "id", "prompt", "prompt_ids", "output", "output_ids", "messages", "system", "input", "response", "request",
    "choices", "logprobs", "top_logprobs", "context_ids", "sampled", "sequential", "marked", "translated", "seal",
    "run", "steps",
)  # fmt: skip

SPOILS: Final = (b"\xff", b"\x00", b"\xed\xa0\x80", b"[" * 3000, b'"id": 1, ', b"\r", b"\n", b"9" * 5000)


def text(draw: Random, most: int = 12) -> str:
    """Some characters, of one byte and of several, now and then one that ends a line."""
    alphabet = 'ab5 {"\\,:éß\u0301\U0001f642\u2028\x00\n\r'
    return "".join(draw.choices(alphabet, k=draw.randint(0, most)))


def value(draw: Random, depth: int = 2) -> Any:
    """Some JSON."""
    kind = draw.randrange(8)
    if kind < 4:
        return copy.deepcopy(draw.choice(ODD))
    if kind == 4 or depth == 0:
        return text(draw)
    if kind == 5:
        return draw.choice((draw.randint(-9, 300), draw.getrandbits(70), draw.uniform(-9, 9)))
    if kind == 6:
        return [value(draw, depth - 1) for _ in range(draw.randint(0, 3))]
    return {text(draw, 6): value(draw, depth - 1) for _ in range(draw.randint(0, 3))}


def changed(draw: Random, found: Any, most: int = 3) -> Any:
    """A JSON value with up to so many places replaced, left out, added or exchanged."""
    found = copy.deepcopy(found)
    for _ in range(draw.randint(1, most)):
        found = _change(draw, found)
    return found


def _change(draw: Random, found: Any) -> Any:
    inside = isinstance(found, dict | list) and len(found) > 0
    if not inside or draw.randrange(6) == 0:
        return value(draw)
    where = draw.choice(list(found) if isinstance(found, dict) else range(len(found)))
    kind = draw.randrange(8)
    if kind == 0:
        del found[where]
    elif kind == 1 and isinstance(found, dict):
        found[draw.choice((text(draw, 8), draw.choice(NAMES)))] = found[where]
    elif kind == 1:
        found.insert(where, copy.deepcopy(found[where]))
    else:
        found[where] = _change(draw, found[where])
    return found


def spoiled(draw: Random, data: bytes, most: int = 4) -> bytes:
    """Some bytes with up to so many places flipped, cut out, written twice or written over."""
    found = bytearray(data)
    for _ in range(draw.randint(1, most)):
        at = draw.randint(0, max(0, len(found) - 1))
        length = draw.choice((1, 1, 2, 4, 8, 64, len(found)))
        kind = draw.randrange(5)
        if kind == 0 and found:
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del found[at : at + length]
        elif kind == 2:
            found[at:at] = found[at : at + length]
        elif kind == 3:
            found[at : at + length] = draw.randbytes(draw.randint(0, 8))
        else:
            found[at:at] = draw.choice(SPOILS)
    return bytes(found)


def encoded(found: Any) -> bytes:
    """JSON as bytes, whatever is in it."""
    return json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogatepass")


def document(draw: Random, found: Any) -> bytes:
    """A JSON file with a few places changed; now and then its text is spoiled instead."""
    return spoiled(draw, encoded(found)) if draw.randrange(4) == 0 else encoded(changed(draw, found))


def lines(draw: Random, records: list[Any]) -> bytes:
    """Records as JSONL, a few of them changed; now and then the text itself is spoiled."""
    data = b"".join(encoded(changed(draw, one) if draw.randrange(3) == 0 else one) + b"\n" for one in records)
    return spoiled(draw, data) if draw.randrange(4) == 0 else data
