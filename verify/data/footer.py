"""What a Parquet file says of its row groups, read from its footer without the library that reads the file.

Arrow ends the process over a footer in which it finds a contradiction while it is asked for a column's figures. So the
few figures that plan a run, and that tell a bomb, are read here: the footer is Thrift's compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md), the fields are those of
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from watermark import InputError
from watermark.io.files import open_to_read

MOST_FOOTER: Final = 64 << 20
"""Bytes of a footer."""
MOST_VALUES: Final = 1 << 24
"""Numbers that a column of a row group may hold, however few bytes they take."""
MOST_RATIO: Final = 256
"""Numbers to a byte, in a column of more numbers than that. Sixteen bits an id are half a number to a byte."""
MOST_DECODED: Final = 4 << 30
"""Bytes of a column of a row group, decompressed."""

_DEPTH: Final = 24
_END: Final = b"PAR1"


@dataclass(frozen=True)
class Column:
    """A column of a row group: the first part of its name, its values, and its bytes before compression."""

    name: str
    values: int
    size: int


@dataclass(frozen=True)
class RowGroup:
    """A row group: its rows, its bytes before compression, and its columns."""

    rows: int
    size: int
    columns: tuple[Column, ...]


def read_footer(path: Path) -> tuple[RowGroup, ...]:
    """The row groups of a Parquet file, in order.

    Raises:
        InputError: no footer of a Parquet file, or one that says that little holds much: such a file is refused before
            any of it is in memory.
        OSError: the file cannot be read.
    """
    with open_to_read(path) as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if len(tail) < 8 or tail[4:] != _END or not 0 < length <= end - 8:
            raise InputError(path, 0, "no readable Parquet: it does not end as such a file does")
        if length > MOST_FOOTER:
            raise InputError(path, 0, f"no readable Parquet: a footer of {length:,} bytes")
        file.seek(end - 8 - length)
        data = file.read(length)
    try:
        found = tuple(map(_row_group, _Reader(data).struct(0)[4]))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(path, 0, "no readable Parquet: its footer is damaged") from error
    for number, group in enumerate(found, 1):
        for column in group.columns:
            _check(path, number, column)
    return found


def _check(path: Path, number: int, column: Column) -> None:
    where = f"row group {number}, column '{column.name}'"
    hint = "write it anew, with smaller row groups"
    if column.values > MOST_VALUES and column.values > MOST_RATIO * column.size:
        raise InputError(path, 0, f"{where}: {column.values:,} values in {column.size:,} bytes", hint)
    if column.size > MOST_DECODED:
        raise InputError(path, 0, f"{where}: {column.size:,} bytes, and at most {MOST_DECODED:,} are read", hint)


def _row_group(fields: dict[int, Any]) -> RowGroup:
    columns = tuple(_column(column[3]) for column in fields[1])
    rows, size = fields[3], fields[2]
    if min(rows, size, 0) < 0 or any(min(column.values, column.size) < 0 for column in columns):
        raise ValueError
    return RowGroup(rows, size, columns)


def _column(fields: dict[int, Any]) -> Column:
    return Column(fields[3][0].decode(), fields[5], fields[6])


class _Reader:
    """Thrift's compact protocol. Structs are dictionaries by field number. Raises IndexError or ValueError."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError

    def signed(self) -> int:
        value = self.unsigned()
        return value >> 1 ^ -(value & 1)

    def binary(self) -> bytes:
        size = self.unsigned()
        if size > len(self.data) - self.at:
            raise ValueError
        self.at += size
        return self.data[self.at - size : self.at]

    def struct(self, depth: int) -> dict[int, Any]:
        found: dict[int, Any] = {}
        field = 0
        while head := self.byte():
            field = field + (head >> 4) if head >> 4 else self.signed()
            kind = head & 15
            found[field] = kind == 1 if kind in (1, 2) else self.value(kind, depth + 1)
        return found

    def value(self, kind: int, depth: int) -> Any:
        if depth > _DEPTH:
            raise ValueError
        if kind in (4, 5, 6):
            return self.signed()
        if kind == 8:
            return self.binary()
        if kind in (9, 10):
            return self.items(depth)
        if kind == 12:
            return self.struct(depth)
        if kind in (1, 2, 3):
            return self.byte()
        if kind == 7:
            self.at += 8
            return None
        raise ValueError  # Parquet's metadata has no maps

    def items(self, depth: int) -> list[Any]:
        head = self.byte()
        size = self.unsigned() if head >> 4 == 15 else head >> 4
        if size > len(self.data) - self.at:
            raise ValueError
        return [self.value(head & 15, depth + 1) for _ in range(size)]
