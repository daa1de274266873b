"""Files of records as people have them, whole or in parts: JSONL, Parquet, Arrow, CSV and plain text.

What a record holds is not looked at here: `verify.data.shapes` does.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from watermark import InputError
from watermark.io.fields import JsonError, load_json
from watermark.io.opening import MOST, is_compressed, is_wide, kind_of, open_bytes
from watermark.io.records import Record, RecordError, checked, line_ranges, read_jsonl

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

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


@dataclass(frozen=True)
class Part:
    """A run of one file's records, by default all of them.

    line: number of its first line, or row. start, stop: bytes of a JSONL file, first bytes of lines both; or rows of
    the Parquet row group `group`, or of an Arrow file.
    """

    path: Path
    line: int = 1
    start: int = 0
    stop: int | None = None
    group: int | None = None


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
            yield from _split_parquet(path, tokens)
        elif kind == "arrow":
            yield from _split_arrow(path, tokens)
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


def read_part(part: Part, fields: Collection[str] | None = None) -> Iterator[Record | RecordError]:
    """The records of a part as they stand there, in order; a malformed one comes as a RecordError.

    Args:
        part: the part.
        fields: the columns to read from Parquet; None: all.

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
            yield from _read_table(part, fields)
    except OSError as error:
        raise _unreadable(part.path, error) from error


def columns_of(path: Path) -> list[str]:
    """The names of a table's columns; empty for other files."""
    kind = _kind(path)
    if kind == "parquet":
        with _open_parquet(path) as file:
            return list(file.schema_arrow.names)
    if kind == "arrow":
        with _open_arrow(path) as stream:
            return list(stream.schema.names)
    return []


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


# tables


@contextmanager
def _open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(path, 0, f"no readable Parquet: {str(error).splitlines()[0]}") from error


@contextmanager
def _open_arrow(path: Path) -> Iterator[pa.RecordBatchReader]:
    """An Arrow file: a stream, as `datasets` saves one, or a file of batches."""
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as file:
            if file.read(6) == b"ARROW1":
                batches = pa.ipc.open_file(file)
                stream = (batches.get_batch(i) for i in range(batches.num_record_batches))
                yield pa.RecordBatchReader.from_batches(batches.schema, stream)
            else:
                file.seek(0)
                with pa.ipc.open_stream(file) as reader:
                    yield reader
    except (pa.ArrowException, UnicodeDecodeError) as error:  # a name of a column that is no text
        raise InputError(path, 0, f"no readable Arrow file: {str(error).splitlines()[0]}") from error


def _split_parquet(path: Path, tokens: int) -> Iterator[tuple[Part, int]]:
    with _open_parquet(path) as file:
        line = 1
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group)
            columns = {
                column.path_in_schema.split(".")[0]: column for column in map(about.column, range(about.num_columns))
            }
            ids = {name: columns[name].num_values for name in ("prompt_ids", "output_ids") if name in columns}
            texts = {
                name: columns[name].total_uncompressed_size // 4 for name in ("prompt", "output") if name in columns
            }
            total = sum(max(ids.get(f"{name}_ids", 0), texts.get(name, 0)) for name in ("prompt", "output"))
            total = total or about.total_byte_size // 4  # a table of another shape
            pieces = min(max(1, -(-total // tokens)), max(1, about.num_rows))
            for piece in range(pieces):
                start, stop = about.num_rows * piece // pieces, about.num_rows * (piece + 1) // pieces
                if stop > start:
                    yield Part(path, line + start, start, stop, group), total // pieces
            line += about.num_rows


def _split_arrow(path: Path, tokens: int) -> Iterator[tuple[Part, int]]:
    with _open_arrow(path) as stream:
        start = stop = held = 0
        for batch in stream:
            stop, held = stop + len(batch), held + batch.nbytes // 4
            if held >= tokens:
                yield Part(path, start + 1, start, stop), held
                start, held = stop, 0
        if stop > start:
            yield Part(path, start + 1, start, stop), held


def _read_table(part: Part, fields: Collection[str] | None) -> Iterator[Record | RecordError]:
    row = 0
    for batch in _batches(part, fields):
        # what a batch says of itself is believed otherwise, offsets into memory among it
        _check(part.path, batch, row + 1)
        columns = batch.schema.names
        first, row = row, row + len(batch)
        if row <= part.start:
            continue
        if part.stop is not None and first >= part.stop:
            return
        low, high = max(part.start - first, 0), row if part.stop is None else min(row, part.stop)
        cut = batch.slice(low, high - first - low)
        try:
            values = [_values(column) for column in cut.columns]
        except UnicodeDecodeError as error:
            raise InputError(part.path, row, "the name of a nested field is no valid UTF-8") from error
        for i in range(len(cut)):
            named = zip(columns, (value[i] for value in values), strict=True)
            there = {name: value for name, value in named if value is not None}
            yield Record(part.path, part.line + first + low + i - part.start, there)


def _batches(part: Part, fields: Collection[str] | None) -> Iterator[pa.RecordBatch]:
    """A table's rows in order, some hundred at a time; of the row group, if the part names one."""
    import pyarrow as pa

    if _kind(part.path) == "arrow":
        with _open_arrow(part.path) as stream:
            for batch in stream:
                kept = [i for i, name in enumerate(batch.schema.names) if fields is None or name in fields]
                for start in range(0, len(batch), _ROWS):
                    yield batch.select(kept).slice(start, _ROWS)
        return
    with _open_parquet(part.path) as file:
        schema = file.schema_arrow
        columns = [name for name in schema.names if fields is None or name in fields]
        nested = any(pa.types.is_nested(schema.field(name).type) for name in columns if not name.endswith("_ids"))
        groups = None if part.group is None else [part.group]
        yield from file.iter_batches(batch_size=_ROWS if nested else 1024, row_groups=groups, columns=columns)


def _check(path: Path, batch: pa.RecordBatch, row: int) -> None:
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        message = f"no readable values in this row or in the {len(batch) - 1} that follow"
        raise InputError(path, row, f"{message}: {str(error).splitlines()[0]}") from error


_ROWS: Final = 128  # of nested columns at a time


def _values(column: pa.Array) -> list[Any]:
    """A column's rows as Python values; a list of integers without holes as an array."""
    import pyarrow as pa

    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists and pa.types.is_integer(kind.value_type)) or column.flatten().null_count:
        rows: list[Any] = column.to_pylist()
        return rows
    values = column.flatten().to_numpy()
    ends = np.cumsum(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    arrays = np.split(values, ends[:-1])
    return [array if there else None for array, there in zip(arrays, column.is_valid().to_pylist(), strict=True)]


# text


def _read_csv(path: Path) -> Iterator[Record | RecordError]:
    """The rows of a CSV or TSV file whose first row names the columns; a cell of JSON stands for its value."""
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    with open_bytes(path) as file:
        if is_wide(file.peek(4)[:4]):
            yield RecordError(path, 1, "no valid UTF-8, but UTF-16 or UTF-32", "save it as UTF-8")
            return
        line = 1
        csv.field_size_limit(_CELL)
        text = io.TextIOWrapper(file, "utf-8-sig", newline="")
        rows = csv.reader(iter(lambda: _line(text), ""), delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
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
