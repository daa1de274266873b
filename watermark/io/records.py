"""Records: the types of their fields, and the log of them that a killed run goes on with."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from watermark.errors import InputError
from watermark.io.fields import (
    JsonError,
    Types,
    either,
    is_flag,
    is_name,
    is_null,
    is_text,
    list_of,
    load_json,
    wrong_field,
)
from watermark.io.files import lock, writing
from watermark.progress import Progress, silent


class RecordError(InputError):
    """One record is malformed; others of its file may be good."""


FIELDS: Final[Types] = {
    "id": (either(is_null, is_name), "a string or an integer"),
    "prompt": (either(is_null, is_text), "a string"),
    "output": (either(is_null, is_text), "a string"),
    "ended": (either(is_null, is_flag), "true or false"),
    "marked": (either(is_null, is_flag), "true or false"),
    "sampled": (either(is_null, is_flag), "true or false"),
    "sequential": (either(is_null, is_flag), "true or false"),
    "mark": (either(is_null, is_text, list_of(is_text)), "a commitment, a list of them, or null"),
}
"""Fields that every reader of records takes in the same way. null, as in Parquet, says nothing."""


@dataclass(frozen=True)
class Record:
    """One record as it was read. line: from 1; a row in Parquet."""

    path: Path
    line: int
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        """Its id, or else the file's name and the line."""
        given = self.fields.get("id")
        return f"{self.path.name}:{self.line}" if given is None else str(given)

    def error(self, message: str, hint: str | None = None) -> RecordError:
        """What is wrong with it."""
        return RecordError(self.path, self.line, message, hint)


def checked(record: Record | RecordError) -> Record | RecordError:
    """The record, or what is wrong with it: a field of `FIELDS` that is of another type."""
    if isinstance(record, RecordError):
        return record
    wrong = wrong_field(record.fields, FIELDS)
    return record if wrong is None else record.error(wrong)


def run_digest(*parts: Any) -> str:
    """Twelve hex digits for all that shapes a run's records: another value, another run.

    Args:
        parts: what JSON can hold, and dataclasses and mappings of it.
    """

    def plain(value: Any) -> Any:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)

    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=plain).encode()).hexdigest()[:12]


Append = Callable[[Iterable[Mapping[str, Any]]], None]
"""Adds records to a log; they are with the operating system when it returns."""


@contextmanager
def resuming(path: Path, run: str) -> Iterator[tuple[list[Record], Append]]:
    """A log that one run writes, held against all others from the first read to the last write.

    Yields the records that the run wrote before it was killed, and a function that appends more. Each has `id`, a
    string, and `run`. The file is made if it is not there. A last line without its end is cut off, or ended if all of
    it is there.

    Args:
        path: JSONL.
        run: from `run_digest`.

    Raises:
        InputError: the file is not one that this run was writing, another run is writing to it, or nobody can.
    """
    with writing(path):
        if path.is_symlink():
            raise InputError(path, 0, "cannot write: it is a link", "name the file that it points to")
        flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | flags, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise InputError(path, 0, "cannot write: it is no regular file", "choose a file")
        if not lock(file):
            raise InputError(path, 0, "another run is writing to it", "let it finish, or choose another file")

        def append(records: Iterable[Mapping[str, Any]]) -> None:
            lines = (json.dumps({**record, "run": run}, ensure_ascii=False) + "\n" for record in records)
            _write(file, path, "".join(lines).encode())

        records, end, whole = _read_log(file, path, run)
        if end < os.fstat(file).st_size:
            with writing(path):
                os.ftruncate(file, end)
        if not whole:
            _write(file, path, b"\n")
        yield records, append
    finally:
        os.close(file)


def _write(file: int, path: Path, data: bytes) -> None:
    rest = memoryview(data)
    with writing(path):
        while rest:
            rest = rest[os.write(file, rest) :]


def _read_log(file: int, path: Path, run: str) -> tuple[list[Record], int, bool]:
    """A log's records, where the last of them ends, and whether a line end stands there."""
    records: list[Record] = []
    end, whole = 0, True
    with os.fdopen(file, "rb", closefd=False) as lines:
        for number, line in enumerate(lines, 1):
            try:
                fields = load_json(line)
            except JsonError:
                # a run writes whole lines: one without an end is the beginning of the line that it was writing
                if not line.endswith(b"\n") and (line.startswith(b'{"') or (records and line == b"{")):
                    break
                fields = None
            if not isinstance(fields, dict) or not isinstance(fields.get("id"), str) or "run" not in fields:
                raise InputError(path, number, "not a record of this command's", "choose another file")
            if fields["run"] != run:
                raise InputError(
                    path,
                    number,
                    "was written with another model, mark, prompts or settings",
                    "choose another file, or remove this one",
                )
            record = checked(Record(path, number, fields))
            if isinstance(record, InputError):
                raise record
            records.append(record)
            end, whole = end + len(line), line.endswith(b"\n")
    return records, end, whole


Value = TypeVar("Value")


def resumable(
    path: Path | None,
    run: str,
    ids: Sequence[str],
    work: Callable[[int], Iterable[Value]],
    *,
    to_fields: Callable[[Value], Mapping[str, Any]],
    from_record: Callable[[Record], Value],
    progress: Progress = silent,
) -> Iterator[Value]:
    """A value for each of some ids, in order: from a log as far as an earlier run came, the rest by `work`.

    Each new value is in the log before it is yielded. The log is held against other runs until the last value is.

    Args:
        path: the log, JSONL; None: keep none.
        run: from `run_digest`, for all that shapes the values.
        ids: of the values; two may be alike.
        work: makes the values from an index on, in order; not called if none is missing.
        to_fields: a value as a record, without `id` and `run`.
        from_record: a value from its record. May raise InputError.
        progress: called with the values so far, and of how many.

    Raises:
        InputError: the log cannot be written, is of another run or in use by one, or does not hold one record an id in
            the order of the ids.
    """
    with _no_log() if path is None else resuming(path, run) as (earlier, append):
        _check_order(earlier, ids)
        done = len(earlier)
        progress(done, len(ids))
        for record in earlier:
            yield from_record(record)
        for value in work(done) if done < len(ids) else ():
            if path is not None:
                append([{"id": ids[done], **to_fields(value)}])
            done += 1
            progress(done, len(ids))
            yield value
        assert done == len(ids), "one value an id"


@contextmanager
def _no_log() -> Iterator[tuple[list[Record], Append]]:
    yield [], lambda _records: None


def _check_order(records: Sequence[Record], ids: Sequence[str]) -> None:
    hint = "did two runs write to it? choose another file, or remove this one"
    lines: dict[str, int] = {}
    for number, record in enumerate(records):
        name = record.fields["id"]
        if number >= len(ids):
            message = f"holds {len(records)} records, more than the {len(ids)} asked for"
        elif name == ids[number]:
            lines[name] = record.line
            continue
        elif name in lines:
            message = f"record '{name}' was there before, in line {lines[name]}"
        else:
            message = f"holds record '{name}' where '{ids[number]}' should be"
        raise InputError(record.path, record.line, message, hint)
