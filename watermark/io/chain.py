"""A hash chain through the lines of a log: none can be dropped, doubled, moved or changed without breaking it.

The last key of a line is `chain`: SHA-256 (64 hex digits) of the chain of the line before it, as ASCII (none for the
first line), and of the line's own bytes without that key, up to and with its last brace.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

CHAIN: Final = "chain"
"""The last key of a line."""

_END: Final = re.compile(rb', "chain": "([0-9a-f]{64})"\}\s*$')


def link(line: str, head: str) -> tuple[str, str]:
    """A line of JSON with its `chain`, and that chain. head: of the line before; empty for the first.

    >>> line, head = link('{"id": "a"}', "")
    >>> line == '{"id": "a", "chain": "' + head + '"}', read_link(line.encode(), "") == head
    (True, True)
    """
    chain = hashlib.sha256(head.encode() + line.encode()).hexdigest()
    return f'{line[:-1]}, "chain": "{chain}"}}', chain


def read_link(line: bytes, head: str) -> str:
    """The chain that a line holds; empty if it has none, or one that does not follow from the line and `head`."""
    found = _END.search(line)
    if found is None:
        return ""
    chain = hashlib.sha256(head.encode() + line[: found.start()] + b"}").hexdigest()
    return chain if chain == found[1].decode() else ""
