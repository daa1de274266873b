"""Records: the types of their fields, and the log of them that a killed run goes on with."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from watermark.errors import InputError
from watermark.io.chain import CHAIN, link, read_link
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
from watermark.io.files import lock, settle, writing
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
"""Adds records to a log; no kill takes them back when it returns, and no power cut, but for the `pause` of a log."""

PAUSE: Final = 1.0
"""Seconds of work that a power cut may cost where many records are made in one."""


@contextmanager
def resuming(
    path: Path, run: str, key: bytes | None = None, *, chained: bool = False, pause: float = 0.0
) -> Iterator[tuple[list[Record], Append]]:
    """A log that one run writes, held against all others from the first read to the last write.

    Yields the records that the run wrote before it was killed, and a function that appends more. Each has `id`, a
    string, and `run`. The file is made if it is not there. A last line without its end is cut off, or ended if all of
    it is there.

    Args:
        path: JSONL.
        run: from `run_digest`.
        key: each record has a `seal` by it, over the record and the seal of the one before: then only who has the key
            can change a line, or leave one out that is not the last. None: they have none.
        chained: each record gets a `chain` (`watermark.io.chain`) that anybody can check, unless the file was begun
            without.
        pause: seconds between two times that what was appended is put on the disk; 0: it is each time. The end of the
            block is one more.

    Raises:
        InputError: the file is not one that this run was writing, or was changed since; another run is writing to it,
            or nobody can.
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

        earlier, end, whole, head = _read_log(file, path, run)
        before = "" if key is None else _check_seals(earlier, key)
        chained = chained and (not earlier or head != "")
        if not earlier:
            with writing(path):
                settle(path.parent)
        settled, waits = time.monotonic(), False

        def append(records: Iterable[Mapping[str, Any]]) -> None:
            nonlocal before, head, settled, waits
            lines = []
            for record in records:
                fields = {**record, "run": run}
                if key is not None:
                    before = _seal(key, before, fields)
                    fields[SEAL] = before
                line = json.dumps(fields, ensure_ascii=False)
                if chained:
                    line, head = link(line, head)
                lines.append(line + "\n")
            _write(file, path, "".join(lines).encode())
            waits = time.monotonic() - settled < pause
            if not waits:
                with writing(path):
                    os.fsync(file)
                settled = time.monotonic()

        if end < os.fstat(file).st_size:
            with writing(path):
                os.ftruncate(file, end)
        if not whole:
            _write(file, path, b"\n")
        try:
            yield earlier, append
        finally:
            if waits:
                with writing(path):
                    os.fsync(file)
    finally:
        os.close(file)


SEAL: Final = "seal"
"""The field of a record that vouches for the others."""


def sealed(key: bytes, content: bytes) -> str:
    """HMAC-SHA256 of some content, 64 hex characters."""
    return hmac.digest(key, content, "sha256").hex()


def _seal(key: bytes, before: str, fields: Mapping[str, Any]) -> str:
    return sealed(key, f"{before}\n{json.dumps(fields, ensure_ascii=False)}".encode("utf-8", "surrogatepass"))


def _check_seals(records: Sequence[Record], key: bytes) -> str:
    """The seal of the last record, or "". Raises InputError at the first that does not hold."""
    before = ""
    for record in records:
        fields = {name: value for name, value in record.fields.items() if name not in (SEAL, CHAIN)}
        given, before = record.fields.get(SEAL), _seal(key, before, fields)
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), before.encode()):
            what = "this line, or the one before it, was changed since it was written"
            message = what if given is not None else "this line has no seal, which says that it was not changed"
            raise InputError(record.path, record.line, message, "choose another file, or remove this one")
    return before


def _write(file: int, path: Path, data: bytes) -> None:
    rest = memoryview(data)
    with writing(path):
        while rest:
            rest = rest[os.write(file, rest) :]


def _read_log(file: int, path: Path, run: str) -> tuple[list[Record], int, bool, str]:
    """A log's records, where the last of them ends, whether a line end stands there, and the head of its chain."""
    records: list[Record] = []
    end, whole, head = 0, True, ""
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
            if "chain" in fields or head:
                known, head = head, read_link(line, head)
                if not head:
                    what = "the first record is" if not known else "this record, or the one before it, is"
                    message = f"{what} not the one that was written here: the chain is broken"
                    raise InputError(path, number, message, "restore the file from a copy")
            records.append(record)
            end, whole = end + len(line), line.endswith(b"\n")
    return records, end, whole, head


Value = TypeVar("Value")


def resumable(
    path: Path | None,
    run: str,
    ids: Sequence[str],
    work: Callable[[int], Iterable[Value]],
    *,
    to_fields: Callable[[Value], Mapping[str, Any]],
    from_record: Callable[[Record], Value],
    key: bytes | None = None,
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
        key: as for `resuming`.
        progress: called with the values so far, and of how many.

    Raises:
        InputError: the log cannot be written, is of another run or in use by one, or does not hold one record an id in
            the order of the ids.
    """
    with _no_log() if path is None else resuming(path, run, key, pause=PAUSE) as (earlier, append):
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
