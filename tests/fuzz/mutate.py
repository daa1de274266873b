"""Strategies: JSON with a few places changed, bytes with a few spoiled, and how long to look."""

from __future__ import annotations

import copy
import json
import os
from typing import Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES: Final = int(os.environ.get("STILLMARK_FUZZ", "25"))
"""Cases of each target: few in every run of the tests, many by `make fuzz`."""

fuzz: Final = settings(
    max_examples=CASES,
    deadline=None,  # the machine may be busy; what hangs is seen by the one who waits
    derandomize="STILLMARK_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""Of every target. Without STILLMARK_FUZZ the cases are the same in every run."""

ODD: Final = st.sampled_from(
    [
        None, True, False, 0, 1, -1, 2**31, 2**32, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, float("inf"), float("nan"),
        "", "\x00", "\x1b[2K", "\u202e", "\u2028", "a" * 300, [], {}, [[]], [None], [True], {"": None}, [1, [2]],
        "output_ids", "-Infinity", "1e999", [-1], [2**32], ["5"], {"5": {"logprob": -1.5}}, "data: {}",
    ]
)  # fmt: skip

JSON: Final = st.recursive(
    ODD | st.text(max_size=12) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """A JSON value with up to so many places replaced, left out, added or exchanged."""
    found = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        found = _change(draw, found)
    return found


def _change(draw: st.DrawFn, value: Any) -> Any:
    inside = isinstance(value, dict | list) and len(value) > 0
    if not inside or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    where = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    kind = draw(st.integers(0, 7))
    if kind == 0:
        del value[where]
    elif kind == 1 and isinstance(value, dict):
        value[draw(st.text(max_size=8) | st.sampled_from(NAMES))] = value[where]
    elif kind == 1:
        value.insert(where, copy.deepcopy(value[where]))
    else:
        value[where] = _change(draw, value[where])
    return value


NAMES: Final = (
    "id", "prompt", "prompt_ids", "output", "output_ids", "messages", "system", "input", "response", "request",
    "choices", "logprobs", "top_logprobs", "context_ids", "sampled", "sequential", "marked", "translated", "seal",
    "run", "steps",
)  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn, data: bytes, most: int = 4) -> bytes:
    """Some bytes with up to so many places flipped, cut out, written twice or written over."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 64, len(found)]))
        kind = draw(st.integers(0, 4))
        if kind == 0 and found:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del found[at : at + length]
        elif kind == 2:
            found[at:at] = found[at : at + length]
        elif kind == 3:
            found[at : at + length] = draw(st.binary(max_size=8))
        else:
            found[at:at] = draw(
                st.sampled_from(
                    [b"\xff", b"\x00", b"\xed\xa0\x80", b"[" * 3000, b'"id": 1, ', b"\r", b"\n", b"9" * 5000]
                )
            )
    return bytes(found)


@st.composite
def lines(draw: st.DrawFn, records: list[Any]) -> bytes:
    """Records as JSONL, a few of them changed; now and then the text itself is spoiled."""
    chosen = [draw(changed(one)) if draw(st.integers(0, 2)) == 0 else one for one in records]
    data = "".join(json.dumps(one) + "\n" for one in chosen).encode("utf-8", "surrogatepass")
    return draw(spoiled(data)) if draw(st.integers(0, 3)) == 0 else data
