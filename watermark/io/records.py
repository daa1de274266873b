"""JSONL, one record a line: the reader that all of our inputs go through."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from watermark.errors import InputError


@dataclass(frozen=True)
class Record:
    """One record as it was read. line: from 1; a row in Parquet."""

    path: Path
    line: int
    fields: dict[str, Any]

    def error(self, message: str, hint: str | None = None) -> InputError:
        return InputError(self.path, self.line, message, hint)


def read_jsonl(path: Path, first: int = 1, start: int = 0, stop: int | None = None) -> Iterator[Record | InputError]:
    """The records of a JSONL file in order, blank lines left out; a malformed line comes as an InputError.

    Args:
        path: the file.
        first: number of the line that begins at `start`.
        start: byte to begin at, the first of a line.
        stop: byte to end before, the first of a line too; None: the end of the file.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(start)
        for number, line in enumerate(file, first):
            if stop is not None and start >= stop:
                return
            start += len(line)
            if not line.strip():
                continue
            try:
                fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if b"\\ud" in line.lower():  # half a surrogate pair is valid JSON and no text
                    json.dumps(fields, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                reason = "no valid UTF-8" if isinstance(error, UnicodeError) else "no valid JSON"
                cut = "" if line.endswith(b"\n") else ", and the file ends within the line: was its writer killed?"
                yield InputError(path, number, reason + cut, "mend the line, or leave bad records out with --skip-bad")
                continue
            if isinstance(fields, dict):
                yield Record(path, number, fields)
            else:
                yield InputError(path, number, "a record must be a JSON object", "one object a line (JSONL)")


def line_ranges(path: Path, size: int) -> Iterator[tuple[int, int, int]]:
    """A file in runs of whole lines, of `size` bytes or a little more: number of the first line, start, stop.

    Raises:
        OSError: the file cannot be read.
    """
    number, start = 1, 0
    with path.open("rb") as file:
        while block := file.read(size):
            block += file.readline()
            yield number, start, start + len(block)
            number, start = number + block.count(b"\n"), start + len(block)


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """A file to append records to, held against other runs that would write to it.

    Raises:
        InputError: it cannot be opened for writing, or another run is writing to it.
    """
    try:
        file = path.open("ab+")
    except OSError as error:
        raise InputError(
            path, 0, f"cannot write: {error.strerror}", "does the folder exist, and is it writable?"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(path, 0, "another run is writing to it", "let it finish, or choose another file") from None
        except OSError:
            pass  # a file system without locks
        yield file


def resume_jsonl(path: Path, run: str) -> list[Record]:
    """The records that a run wrote to a file before it was killed; a last line without its end is cut off.

    Every record has `id` and `run`, a digest of everything that shaped it. The file is made if it is not there.

    Raises:
        InputError: the file is not one that this run was writing, another run is writing to it, or nobody can.
    """
    records: list[Record] = []
    head = b'{"id": '
    with appending(path) as file:
        file.seek(0)
        end = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n") and (line.startswith(head) or head.startswith(line)):
                break  # killed while it wrote this one
            try:
                fields = json.loads(line)
                same = fields["run"] == run and isinstance(fields["id"], str)
            except (ValueError, KeyError, TypeError):
                raise InputError(path, number, "not a record of this command's", "choose another file") from None
            if not same:
                raise InputError(
                    path,
                    number,
                    "was written with another model, mark, prompts or settings",
                    "choose another file, or remove this one",
                )
            records.append(Record(path, number, fields))
            end += len(line)
        if end < file.seek(0, os.SEEK_END):
            file.truncate(end)
    return records
