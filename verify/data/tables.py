"""Tables: Parquet and Arrow, row by row, whole or in parts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from verify.data.footer import read_footer
from watermark import InputError
from watermark.io.records import Record

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


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


def columns_of(path: Path) -> list[str]:
    """The names of a table's columns. Raises InputError."""
    if _is_arrow(path):
        with _open_arrow(path) as stream:
            return list(stream.schema.names)
    with _open_parquet(path) as file:
        return list(file.schema_arrow.names)


def _is_arrow(path: Path) -> bool:
    return path.suffix.lower() == ".arrow"


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


def split_parquet(path: Path, tokens: int) -> Iterator[tuple[Part, int]]:
    """As `verify.data.sources.split`: some rows of a row group each."""
    line = 1
    for number, group in enumerate(read_footer(path)):
        columns = {column.name: column for column in group.columns}
        ids: dict[str, int] = {name: columns[name].values for name in ("prompt_ids", "output_ids") if name in columns}
        texts = {name: columns[name].size // 4 for name in ("prompt", "output") if name in columns}
        total = sum(max(ids.get(f"{name}_ids", 0), texts.get(name, 0)) for name in ("prompt", "output"))
        total = total or group.size // 4  # a table of another shape
        pieces = min(max(1, -(-total // tokens)), max(1, group.rows))
        for piece in range(pieces):
            start, stop = group.rows * piece // pieces, group.rows * (piece + 1) // pieces
            if stop > start:
                yield Part(path, line + start, start, stop, number), total // pieces
        line += group.rows


def split_arrow(path: Path, tokens: int) -> Iterator[tuple[Part, int]]:
    """As `verify.data.sources.split`: some batches of rows each."""
    with _open_arrow(path) as stream:
        start = stop = held = 0
        for batch in stream:
            stop, held = stop + len(batch), held + batch.nbytes // 4
            if held >= tokens:
                yield Part(path, start + 1, start, stop), held
                start, held = stop, 0
        if stop > start:
            yield Part(path, start + 1, start, stop), held


def read_table(part: Part, fields: Collection[str] | None, *, texts: bool = False) -> Iterator[Record]:
    """The rows of a part as they stand there. Raises InputError.

    fields: the columns to read, None: all; texts: read others that hold text too.
    """
    row = 0
    for batch in _batches(part, fields, texts=texts):
        # what a batch says of itself is believed otherwise, offsets into memory among it
        _check(part.path, batch, row + 1)
        columns = batch.schema.names
        if len(set(columns)) < len(columns):
            raise InputError(part.path, 0, "two columns have one name", "another reader may take the other one")
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
        except ValueError as error:
            raise InputError(part.path, row, "a nested field is there twice") from error
        for i in range(len(cut)):
            named = zip(columns, (value[i] for value in values), strict=True)
            there = {name: value for name, value in named if value is not None}
            yield Record(part.path, part.line + first + low + i - part.start, there)


def _batches(part: Part, fields: Collection[str] | None, *, texts: bool) -> Iterator[pa.RecordBatch]:
    """A table's rows in order, some hundred at a time; of the row group, if the part names one."""
    import pyarrow as pa

    if _is_arrow(part.path):
        with _open_arrow(part.path) as stream:
            for batch in stream:
                kept = [i for i, field in enumerate(batch.schema) if _is_wanted(field, fields, texts=texts)]
                for start in range(0, len(batch), _ROWS):
                    yield batch.select(kept).slice(start, _ROWS)
        return
    widest = max((column.size for group in read_footer(part.path) for column in group.columns), default=0)
    with _open_parquet(part.path) as file:
        wanted = [field for field in file.schema_arrow if _is_wanted(field, fields, texts=texts)]
        columns = [field.name for field in wanted]
        nested = any(pa.types.is_nested(field.type) for field in wanted if not field.name.endswith("_ids"))
        groups = None if part.group is None else [part.group]
        # each row of a batch may be as long as all that a column holds: it is stored once, and meant by all
        most = max(_FEWEST, min(_ROWS if nested else 1024, _BATCH // max(1, widest)))
        yield from file.iter_batches(batch_size=most, row_groups=groups, columns=columns)


def _is_wanted(field: pa.Field, fields: Collection[str] | None, *, texts: bool) -> bool:
    return fields is None or field.name in fields or (texts and _holds_text(field.type))


def _holds_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or any(map(_holds_text, inner))


def _check(path: Path, batch: pa.RecordBatch, row: int) -> None:
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        message = f"no readable values in this row or in the {len(batch) - 1} that follow"
        raise InputError(path, row, f"{message}: {str(error).splitlines()[0]}") from error


_ROWS: Final = 128  # of nested columns at a time
_BATCH: Final = 1 << 28  # bytes of a column in a batch, at worst
_FEWEST: Final = 16  # rows of a batch


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
