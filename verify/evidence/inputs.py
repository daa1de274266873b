"""Files of the evidence: their digests, and the digest of every line, so that a change can be named by its record."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from watermark import InputError, StillmarkError
from watermark.io import files
from watermark.io.chain import read_link
from watermark.io.fields import JsonError, is_text, list_of, load_object

MOST_LINES: Final = 200_000
"""Lines of one file whose digests a bundle holds."""

SHOWN: Final = 5
"""Records of one kind that are named one by one."""

HEX: Final = 16
"""Digits of a line's digest; the digest of the file is whole."""


@dataclass(frozen=True)
class Input:
    """One file, or model folder, of the evidence.

    Attributes:
        name: its path, as the result names it, or under the folder of the verdict.
        sha256: of the file, or the digest of a model.
        lines: of a JSONL file the first digits of each line's SHA-256; None where the file has too many, or no lines.
    """

    name: str
    sha256: str
    lines: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "sha256": self.sha256, "lines": None if self.lines is None else list(self.lines)}


def input_of(path: Path, name: str) -> Input:
    """A file of the evidence. Raises InputError."""
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return Input(name, files.sha256(path))
    data = files.read_bytes(path)
    lines = tuple(hashlib.sha256(line).hexdigest()[:HEX] for line in data.split(b"\n") if line.strip())
    return Input(name, hashlib.sha256(data).hexdigest(), lines if len(lines) <= MOST_LINES else None)


def object_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError."""
    with files.reading(path):
        try:
            return load_object(path)
        except JsonError as error:
            raise InputError(path, 0, str(error)) from None


def inputs_of_fields(fields: Any) -> tuple[Input, ...]:
    """The files, as they stand in JSON. Raises StillmarkError."""
    if not isinstance(fields, list):
        raise StillmarkError("'inputs' must be a list")
    found = []
    for one in fields:
        lines = one.get("lines") if isinstance(one, dict) else None
        named = isinstance(one, dict) and is_text(one.get("name")) and is_text(one.get("sha256"))
        if not named or not (lines is None or list_of(is_text)(lines)):
            raise StillmarkError("an input must have 'name', 'sha256' and 'lines'")
        found.append(Input(one["name"], one["sha256"], None if lines is None else tuple(lines)))
    return tuple(found)


def changes(promised: Input, there: Input, path: Path) -> Iterator[str]:
    """How a file differs from the one that was promised: which records were dropped, doubled, moved or replaced."""
    if promised.sha256 == there.sha256:
        return
    said = f"{path}: SHA-256 {promised.sha256[:16]}... was promised, and {there.sha256[:16]}... is there"
    if promised.lines is None or there.lines is None:
        yield said
        return
    old, new = promised.lines, there.lines
    ids = _ids(path)
    if Counter(old) == Counter(new):
        moved = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        if moved:
            yield f"{said}: the same records in another order, from record {moved[0] + 1} to {moved[-1] + 1}"
        else:
            yield f"{said}: the records are the same, and the white space between them is not"
        return
    if len(old) == len(new):
        replaced = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        yield f"{said}: {_numbers('record', replaced, ids)} replaced"
        return
    left, more = Counter(old) - Counter(new), Counter(new) - Counter(old)
    dropped = [i for i, line in enumerate(old) if line in left]
    doubled = [i for i, line in enumerate(new) if line in more and line in set(old)]
    added = [i for i, line in enumerate(new) if line in more and line not in set(old)]
    parts = [f"{len(old):,} records were promised, and {len(new):,} are there"]
    parts += [f"of the promised ones {_numbers('record', dropped, {})} dropped"] if dropped else []
    parts += [f"{_numbers('record', doubled, ids)} there more than once"] if doubled else []
    parts += [f"{_numbers('record', added, ids)} new"] if added else []
    yield f"{said}: {'; '.join(parts)}"


def _numbers(noun: str, places: Sequence[int], ids: Mapping[int, str]) -> str:
    """Some records by their numbers, and by their ids where these are known."""
    named = [f"{i + 1}{f' ({ids[i]})' if i in ids else ''}" for i in places[:SHOWN]]
    more = f" and {len(places) - SHOWN:,} more" if len(places) > SHOWN else ""
    return f"{noun}{'' if len(places) == 1 else 's'} {', '.join(named)}{more} {'is' if len(places) == 1 else 'are'}"


def _ids(path: Path) -> dict[int, str]:
    """The ids of the first records, as far as they can be read: they help to find one, and decide nothing."""
    found: dict[int, str] = {}
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    for i, line in enumerate(lines[:MOST_LINES]):
        try:
            name = json.loads(line).get("id")
        except (ValueError, AttributeError, RecursionError):
            continue
        if isinstance(name, str) and name.isprintable():
            found[i] = name[:40]
    return found


@dataclass(frozen=True)
class Chain:
    """The hash chain through the log of a sequential run: how many records it has, and the chain of the last one."""

    name: str
    records: int
    head: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "records": self.records, "head": self.head}


def chain_of(path: Path, name: str) -> Chain | None:
    """The chain through a log; None for a log that was begun without one.

    Raises:
        InputError: a record is not the one that was written there.
    """
    head, number = "", 0
    with path.open("rb") as file:
        for number, line in enumerate(filter(bytes.strip, file), 1):
            known, head = head, read_link(line, head)
            if not head:
                if number == 1 and b'"chain": "' not in line:
                    return None
                message = "the chain is broken: this record was not written after the one before it"
                raise InputError(path, number, message if known else "the chain does not begin with this record")
    return Chain(name, number, head) if number else None
