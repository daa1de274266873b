"""Files of records as people have them, whole or in parts: JSONL, Parquet, Arrow, CSV and plain text.

What a record holds is not looked at here: `verify.data.shapes` does.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

from verify.data.tables import Part, columns_of, read_table, split_arrow, split_parquet
from watermark import InputError
from watermark.io.fields import JsonError, load_json
from watermark.io.jsonl import line_ranges, read_jsonl
from watermark.io.opening import MOST, is_compressed, is_wide, kind_of, open_bytes
from watermark.io.records import Record, RecordError, checked

KINDS: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".sse": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
"""How a file is read, by its suffix in lower case: the files that can hold what a suspect said."""

_PLAIN: Final = ("jsonl", "csv", "text")  # may be compressed as a whole
_ABOUT: Final = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_DEPTH: Final = 3  # folders within a folder of records
_CELL: Final = MOST >> 4  # characters of a cell, and of a line, of a table in text
_FLAGS: Final = {"true": True, "false": False}


def holds_records(path: Path) -> bool:
    """Whether a file of this name can hold what a suspect said."""
    kind = KINDS.get(kind_of(path))
    return kind is not None and (kind in _PLAIN or not is_compressed(path))


def files_in(folder: Path, depth: int = _DEPTH) -> list[Path]:
    """The files of records in a folder, such as one that `datasets` saved, or its folders if it holds none itself."""
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "cache-"))]
    found = [path for path in inside if holds_records(path) and path.is_file() and path.name not in _ABOUT]
    arrow = [path for path in found if kind_of(path) == ".arrow"]
    if arrow or found or not depth:
        return arrow or found
    return [file for path in inside if path.is_dir() for file in files_in(path, depth - 1)]


def files_of(paths: str | Path | Collection[str | Path]) -> tuple[Path, ...]:
    """Files as they were named, and for a folder its files of records.

    Raises:
        InputError: a folder holds none, or cannot be read.
    """
    files: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if not path.is_dir():
            files.append(path)
            continue
        try:
            inside = files_in(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        if not inside:
            raise InputError(path, 0, "is a folder without a file of records", f"it may hold {', '.join(KINDS)}")
        files += inside
    return tuple(files)


def split(path: Path, tokens: int) -> Iterator[tuple[Part, int]]:
    """The parts of one file, of about `tokens` tokens each, and how many it may be: a text is never cut.

    In Parquet ids are counted; elsewhere four bytes are taken for a token.

    Raises:
        InputError: the file cannot be read, or is of no known kind.
    """
    kind = _kind(path)
    try:
        if kind == "jsonl":
            for line, start, stop in line_ranges(path, 4 * tokens):
                yield Part(path, line, start, stop), (stop - start) // 4
        elif kind == "parquet":
            yield from split_parquet(path, tokens)
        elif kind == "arrow":
            yield from split_arrow(path, tokens)
        else:
            yield Part(path), path.stat().st_size // 4
    except OSError as error:
        raise _unreadable(path, error) from error


def read_records(path: Path) -> Iterator[Record | RecordError]:
    """The records of one file as they stand there, in order, if their own fields are of the right types.

    A malformed one comes as a RecordError.

    Raises:
        InputError: the file itself cannot be read, holds nothing, or is of no known kind.
    """
    empty = True
    for record in read_part(Part(path)):
        empty = False
        yield checked(record)
    if empty:
        raise no_records(path)


def no_records(path: Path) -> InputError:
    """What is wrong with a file that holds none."""
    return InputError(path, 0, "holds no records", "was it written to the end?")


def read_part(
    part: Part, fields: Collection[str] | None = None, *, texts: bool = False
) -> Iterator[Record | RecordError]:
    """The records of a part as they stand there, in order; a malformed one comes as a RecordError.

    Args:
        part: the part.
        fields: the columns to read from Parquet; None: all.
        texts: read other columns that hold text too.

    Raises:
        InputError: the file cannot be read, or is of no known kind.
    """
    kind = _kind(part.path)
    try:
        if kind == "jsonl":
            yield from read_jsonl(part.path, part.line, part.start, part.stop)
        elif kind == "csv":
            yield from _read_csv(part.path)
        elif kind == "text":
            yield from _read_text(part.path)
        else:
            yield from read_table(part, fields, texts=texts)
    except OSError as error:
        raise _unreadable(part.path, error) from error


def names_in(path: Path) -> list[str]:
    """The names of a table's columns, all of them; empty for other files."""
    return columns_of(path) if _kind(path) in ("parquet", "arrow") else []


def _kind(path: Path) -> str:
    suffix = kind_of(path)
    if holds_records(path):
        return KINDS[suffix]
    if path.is_dir():
        raise InputError(path, 0, "is a folder", "name its files, or a glob of them")
    if suffix in KINDS:
        raise InputError(path, 0, f"a compressed file of kind '{suffix}'", "decompress it first")
    hint = "want .jsonl, .json, .csv, .tsv (also with .gz or .zst), .parquet, .arrow or .txt"
    raise InputError(path, 0, f"unknown kind of file '{path.suffix.lower()}'", hint)


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(path, 0, f"cannot read: {error.strerror or error}")


def _read_csv(path: Path) -> Iterator[Record | RecordError]:
    """The rows of a CSV or TSV file whose first row names the columns; a cell of JSON stands for its value.

    Where the first row of a CSV file has semicolons and no comma, they separate its cells.
    """
    with open_bytes(path) as file:
        if is_wide(file.peek(4)[:4]):
            yield RecordError(path, 1, "no valid UTF-8, but UTF-16 or UTF-32", "save it as UTF-8")
            return
        line = 1
        csv.field_size_limit(_CELL)
        text = io.TextIOWrapper(file, "utf-8-sig", newline="")
        try:
            first = _line(text)
            by = "\t" if kind_of(path) == ".tsv" else ";" if ";" in first and "," not in first else ","
            rows = csv.reader(chain([first], iter(lambda: _line(text), "")), delimiter=by, strict=True)
            names = next(rows)
            if not first:
                return
            if len(set(names)) < len(names) or not any(names):
                yield RecordError(path, 1, "the first row must name the columns, no two alike")
                return
            line = rows.line_num + 1
            for row in rows:
                if len(row) == len(names):
                    yield Record(path, line, dict(_cells(names, row)))
                elif row:
                    yield RecordError(path, line, f"a row of {len(row)} cells under {len(names)} names of columns")
                line = rows.line_num + 1
        except UnicodeDecodeError:
            yield RecordError(path, line, "no valid UTF-8 here or in the lines that follow")
        except csv.Error as error:
            yield RecordError(path, line, f"no valid CSV: {error}")


def _line(text: io.TextIOWrapper) -> str:
    line = text.readline(_CELL)
    if len(line) == _CELL:
        raise csv.Error("a line is too long")
    return line


def _cells(names: list[str], row: list[str]) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(names, row, strict=True):
        if name in ("marked", "ended", "sequential", "sampled"):
            if cell:
                yield name, _FLAGS.get(cell.lower(), cell)
        elif name.endswith("_ids") or name in ("messages", "conversations"):
            if cell:
                try:
                    yield name, load_json(cell.encode())
                except JsonError:
                    yield name, cell
        else:
            yield name, cell


def _read_text(path: Path) -> Iterator[Record | RecordError]:
    with open_bytes(path) as file:
        data = file.read(MOST)
    if len(data) == MOST:
        yield RecordError(path, 1, f"a text of more than {MOST >> 20} MiB")
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield RecordError(path, data[: error.start].count(b"\n") + 1, "no valid UTF-8")
        return
    if text.strip():
        yield Record(path, 1, {"id": path.name, "output": text})
