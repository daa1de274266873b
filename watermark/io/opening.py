"""Files as bytes, decompressed where their name says so: how every reader of records opens them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

from watermark.io.files import open_to_read

COMPRESSED: Final = {".gz": "gzip", ".zst": "zstd"}
"""How a file is compressed, by the last suffix of its name in lower case."""

MOST: Final = 1 << 28
"""Bytes of one record, or of one line: a compressed file of some kilobytes may hold a line of terabytes."""

HEAD: Final = 4096
"""Bytes that are looked at to see what a file holds."""


def is_compressed(path: Path) -> bool:
    """Whether the file is decompressed as it is read."""
    return path.suffix.lower() in COMPRESSED


def kind_of(path: Path) -> str:
    """The suffix that says what a file holds, in lower case: its last one, or the one before `.gz` or `.zst`.

    >>> kind_of(Path("log.JSONL.gz")), kind_of(Path("log.csv")), kind_of(Path("log.gz"))
    ('.jsonl', '.csv', '')
    """
    return Path(path.stem if is_compressed(path) else path.name).suffix.lower()


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, decompressed.

    Raises:
        OSError: the file cannot be read, or is a device, or ends within its compressed data, also while it is read.
    """
    with open_to_read(path) as file:
        if not is_compressed(path):
            yield file
            return
        import pyarrow as pa

        stream = pa.CompressedInputStream(file, COMPRESSED[path.suffix.lower()])
        with io.BufferedReader(stream, 1 << 16) as plain:
            yield cast("io.BufferedReader", plain)


def is_wide(head: bytes) -> bool:
    """Whether a text that begins with these bytes is in UTF-16 or UTF-32, which is full of zeros."""
    return head.startswith((b"\xff\xfe", b"\xfe\xff")) or 4 * head.count(0) > len(head) > 1
