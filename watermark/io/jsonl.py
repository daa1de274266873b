"""JSONL, one record a line, and the other ways in which JSON holds records: the reader of all our inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from watermark.io.fields import JsonError, array_items, load_json
from watermark.io.opening import HEAD, MOST, is_compressed, is_wide, open_bytes
from watermark.io.records import Record, RecordError


def read_jsonl(path: Path, first: int = 1, start: int = 0, stop: int | None = None) -> Iterator[Record | RecordError]:
    """The records of a JSONL file in order, blank lines left out; a malformed one comes as a RecordError.

    What their fields hold is not looked at (see `checked`).

    A file that is one JSON array, however it is printed, is read as its elements; one that is one object over several
    lines as this one record; and a stream of server-sent events, which begins with `data:`, as the objects it sends.

    Args:
        path: the file; with `.gz` or `.zst` at the end of its name it is decompressed.
        first: number of the line that begins at `start`.
        start: byte to begin at, the first of a line.
        stop: byte to end before, the first of a line too; None: the end of the file.

    Raises:
        OSError: the file cannot be read.
    """
    with open_bytes(path) as file:
        events = False
        if start:
            file.seek(start)
        else:
            head = file.peek(HEAD)
            if is_wide(head):
                hint = "save it as UTF-8; it looks like UTF-16 or UTF-32"
                yield RecordError(path, 1, "no valid UTF-8, but UTF-16 or UTF-32", hint)
                return
            if begins_array(head):
                yield from _read_array(path, file)
                return
            if _begins_object(head):
                yield _read_object(path, file)
                return
            events = _begins_events(head)
        number = first
        if is_compressed(path):
            stop = None  # it was counted in compressed bytes
        while (stop is None or start < stop) and (line := file.readline(MOST)):
            number, start = number + 1, start + len(line)
            if len(line) == MOST and not line.endswith(b"\n"):
                yield RecordError(path, number - 1, f"a line of more than {MOST >> 20} MiB", "is it one object a line?")
                return
            whole, line = line, _sent(line) if events else line
            if not line.strip():
                continue
            try:
                fields = load_json(line)
            except JsonError as error:
                cut = "" if whole.endswith(b"\n") else ", and the file ends within the line: was its writer killed?"
                yield RecordError(path, number - 1, f"{error}{cut}")
                continue
            yield _as_record(path, number - 1, fields)


_BOM: Final = b"\xef\xbb\xbf"


def begins_array(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a JSON array, which no line of JSONL is."""
    return head.removeprefix(_BOM).lstrip().startswith(b"[")


def _begins_object(head: bytes) -> bool:
    """Whether a file that begins with these bytes is an object over several lines, which no line of JSONL is."""
    first, _, rest = head.removeprefix(_BOM).lstrip().partition(b"\n")
    return first.strip() == b"{" and bool(rest.strip())


def _begins_events(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a stream of server-sent events."""
    return head.removeprefix(_BOM).lstrip().startswith((b"data:", b"event:", b":", b"id:", b"retry:"))


def _sent(line: bytes) -> bytes:
    """What a line of a stream of events sends, if it sends an object."""
    name, _, sent = line.removeprefix(_BOM).partition(b":")
    return b"" if name != b"data" or sent.strip() == b"[DONE]" else sent


def _read_object(path: Path, file: BinaryIO) -> Record | RecordError:
    data = file.read(MOST)
    try:
        return _as_record(path, 1, load_json(data))
    except JsonError as error:
        hint = "write one object a line (JSONL), or one array of objects"
        return RecordError(path, 1, f"the file begins as an object over several lines, and is none: {error}", hint)


def _read_array(path: Path, file: BinaryIO) -> Iterator[Record | RecordError]:
    try:
        for line, value in array_items(file, MOST):
            yield _as_record(path, line, value)
    except JsonError as error:
        yield RecordError(path, error.line or 1, f"{error}, in a file that begins as an array of records")


def _as_record(path: Path, line: int, value: Any) -> Record | RecordError:
    if isinstance(value, dict):
        return Record(path, line, value)
    return RecordError(path, line, "a record must be a JSON object", "one object a line (JSONL)")


def line_ranges(path: Path, size: int) -> Iterator[tuple[int, int, int]]:
    """A JSONL file in runs of whole lines, of `size` bytes or a little more: number of the first line, start, stop.

    A compressed file, an array, one object, or a stream of events comes in one piece: its records are not known by
    their lines.

    Raises:
        OSError: the file cannot be read.
    """
    number, start = 1, 0
    with path.open("rb") as file:
        head = file.peek(HEAD)
        if is_compressed(path) or is_wide(head) or begins_array(head) or _begins_object(head) or _begins_events(head):
            yield 1, 0, os.fstat(file.fileno()).st_size
            return
        while block := file.read(size):
            block += file.readline()
            yield number, start, start + len(block)
            number, start = number + block.count(b"\n"), start + len(block)
