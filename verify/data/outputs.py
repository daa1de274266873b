"""Read a suspect's outputs: JSONL, Parquet or plain text, into token sequences.

A record has `output_ids` and/or `output`, and may have `prompt_ids` and/or `prompt`, `id` and `ended`; ids win over
text. As in Alpaca's data, `instruction` and `input` are the prompt where there is no other. A `.json` file may also be
one array of records. A `.txt` file is one output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
import numpy.typing as npt

from watermark import InputError, Mark, TokenizerError
from watermark.io.prompts import OTHER_PROMPTS, prompt_of
from watermark.io.records import Record, RecordError, checked, line_ranges, read_jsonl
from watermark.prf import NO_TOKEN
from watermark.progress import Progress, silent
from watermark.tokenizers import Encode, encoder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


FIELDS: Final = (
    "id",
    "prompt",
    "prompt_ids",
    *OTHER_PROMPTS,
    "output",
    "output_ids",
    "ended",
    "mark",
    "marked",
    "sequential",
)
"""What is read of a record."""

KINDS: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}
"""How a file is read, by its suffix in lower case: the files that can hold what a suspect said."""

_BATCH: Final = 512  # records tokenized together
_SHOWN_EVERY: Final = 100

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Output:
    """One output of a suspect as token ids, int64 [length].

    prompt_ids is None when the record names no prompt; prompt is its text, where the record has that too. ended:
    whether the model stopped by itself; None when the record does not say. marked: whether it says that it was
    generated with a mark, as `stillmark generate` does. sequential: it was collected until the evidence sufficed, as
    `stillmark test endpoint` does, so that only a sequential test may use it.
    """

    id: str
    prompt_ids: Ids | None
    output_ids: Ids
    ended: bool | None = None
    marked: bool | None = None
    sequential: bool = False
    prompt: str | None = None

    @property
    def start(self) -> int:
        """Where the output begins in `ids`."""
        return 0 if self.prompt_ids is None else len(self.prompt_ids)

    @property
    def ids(self) -> Ids:
        """Prompt and output, int64 [length]."""
        return self.output_ids if self.prompt_ids is None else np.concatenate([self.prompt_ids, self.output_ids])


@dataclass(frozen=True, eq=False)
class Outputs(Sequence[Output]):
    """Outputs as they were read, in order: a sequence of `Output`. A slice of it is one too.

    Attributes:
        outputs: the outputs.
        files: where they come from; none, if they were made in memory.
        bad: malformed records that were left out.
        first_bad: what was wrong with the first of them.
    """

    outputs: tuple[Output, ...] = field(repr=False)
    files: tuple[Path, ...] = ()
    bad: int = 0
    first_bad: InputError | None = None

    def __len__(self) -> int:
        return len(self.outputs)

    @overload
    def __getitem__(self, which: int) -> Output: ...
    @overload
    def __getitem__(self, which: slice) -> Outputs: ...
    def __getitem__(self, which: int | slice) -> Output | Outputs:
        if isinstance(which, slice):
            return replace(self, outputs=self.outputs[which])
        return self.outputs[which]

    @property
    def marked(self) -> bool | None:
        """Whether any says that it was generated with a mark; None: some do not say."""
        said = {output.marked for output in self.outputs}
        return True if True in said else None if None in said else False

    @property
    def sequential(self) -> int:
        """How many were collected until the evidence sufficed."""
        return sum(output.sequential for output in self.outputs)


@dataclass(frozen=True)
class Part:
    """A run of one file's records, by default all of them.

    line: number of its first line, or row. start, stop: bytes of a JSONL file, first bytes of lines both; or rows of
    the Parquet row group `group`.
    """

    path: Path
    line: int = 1
    start: int = 0
    stop: int | None = None
    group: int | None = None


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
        else:
            yield Part(path), path.stat().st_size // 4
    except OSError as error:
        raise _unreadable(path, error) from error


def read_records(path: Path) -> Iterator[Record | RecordError]:
    """The records of one file, in order; a malformed one comes as a RecordError.

    Raises:
        InputError: the file itself cannot be read, holds nothing, or is of no known kind.
    """
    empty = True
    for record in read_part(Part(path)):
        empty = False
        yield record
    if empty:
        raise no_records(path)


def no_records(path: Path) -> InputError:
    """What is wrong with a file that holds none."""
    return InputError(path, 0, "holds no records", "was it written to the end?")


def read_part(part: Part, fields: Collection[str] = FIELDS) -> Iterator[Record | RecordError]:
    """The records of a part, in order; a malformed one comes as a RecordError.

    Args:
        part: the part.
        fields: the columns to read from Parquet.

    Raises:
        InputError: the file cannot be read, or is of no known kind.
    """
    kind = _kind(part.path)
    try:
        if kind == "jsonl":
            yield from read_jsonl(part.path, part.line, part.start, part.stop)
        elif kind == "parquet":
            yield from _read_parquet(part, fields)
        else:
            yield from _read_text(part.path)
    except OSError as error:
        raise _unreadable(part.path, error) from error


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in KINDS:
        return KINDS[suffix]
    if path.is_dir():
        raise InputError(path, 0, "is a folder", "name its files, or a glob of them")
    raise InputError(path, 0, f"unknown kind of file '{suffix}'", "want .jsonl, .parquet or .txt")


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(path, 0, f"cannot read: {error.strerror or error}")


@contextmanager
def _open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except pa.ArrowException as error:
        raise InputError(path, 0, f"no readable Parquet: {str(error).splitlines()[0]}") from error


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
            pieces = min(max(1, -(-total // tokens)), max(1, about.num_rows))
            for piece in range(pieces):
                start, stop = about.num_rows * piece // pieces, about.num_rows * (piece + 1) // pieces
                if stop > start:
                    yield Part(path, line + start, start, stop, group), total // pieces
            line += about.num_rows


def _read_parquet(part: Part, fields: Collection[str]) -> Iterator[Record | RecordError]:
    with _open_parquet(part.path) as file:
        columns = [name for name in file.schema_arrow.names if name in fields]
        groups = None if part.group is None else [part.group]
        row = 0
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=columns):
            first, row = row, row + len(batch)
            if row <= part.start:
                continue
            if part.stop is not None and first >= part.stop:
                return
            low, high = max(part.start - first, 0), row if part.stop is None else min(row, part.stop)
            cut = batch.slice(low, high - first - low)
            values = [_values(column) for column in cut.columns]
            for i in range(len(cut)):
                named = zip(columns, (value[i] for value in values), strict=True)
                there = {name: value for name, value in named if value is not None}
                yield checked(Record(part.path, part.line + first + low + i - part.start, there))


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


def _read_text(path: Path) -> Iterator[Record | RecordError]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield RecordError(path, data[: error.start].count(b"\n") + 1, "no valid UTF-8")
        return
    if text.strip():
        yield Record(path, 1, {"id": path.name, "output": text})


def read_outputs(
    paths: str | Path | Iterable[str | Path],
    mark: Mark,
    *,
    tokenizer: str | Path | None = None,
    need_prompts: bool = True,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> Outputs:
    """The outputs in some files as token sequences.

    Args:
        paths: a file, or some: .jsonl (.ndjson, .json), .parquet (.pq) or .txt.
        mark: by whose tokenizer texts become ids, and below whose vocabulary's size ids must lie.
        tokenizer: folder of that tokenizer; None: where it was when the mark was made. It is loaded only if a record
            has text and no ids.
        need_prompts: False: a prompt without ids is left out.
        skip_bad: count malformed records instead of stopping at the first.
        progress: called with the number of records read; of how many is not known.

    Raises:
        InputError: a file cannot be read, a record is malformed (RecordError), or, with `skip_bad`, all of them are.
            A text must be tokenized and cannot be.
    """
    files = tuple(Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths))
    encode = encoder(mark, None if tokenizer is None else Path(tokenizer))
    outputs: list[Output] = []
    bad, first_bad = 0, None
    stream = (record for path in files for record in read_records(path))
    for number, found in enumerate(to_outputs(stream, encode, mark.vocabulary_size, need_prompts), 1):
        if isinstance(found, tuple):
            outputs.append(found[1])
        elif skip_bad:
            bad, first_bad = bad + 1, first_bad or found
        else:
            raise found
        if number % _SHOWN_EVERY == 0:
            progress(number, None)
    if first_bad is not None and not outputs:
        raise none_good(files, bad, str(first_bad))
    return Outputs(tuple(outputs), files, bad, first_bad)


def none_good(files: Iterable[Path], bad: int, first: str) -> InputError:
    """What is wrong with files that hold malformed records only."""
    names = [str(file) for file in files]
    shown = " ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return InputError(shown, 0, f"of {bad} records not one is good", f"the first: {first}")


def to_outputs(
    records: Iterator[Record | RecordError], encode: Encode, vocabulary_size: int | None, need_prompts: bool
) -> Iterator[tuple[Record, Output] | RecordError]:
    """Records as token sequences, in order; a malformed one comes as a RecordError.

    Args:
        records: from `read_records` or `read_part`.
        encode: texts to ids; called only for records that have no ids.
        vocabulary_size: ids must lie below it; None: below 2**32 - 1.
        need_prompts: False: a prompt without ids is left out.

    Raises:
        InputError: a file cannot be read; a text must be tokenized and `encode` cannot.
    """
    limit = NO_TOKEN if vocabulary_size is None else vocabulary_size
    while batch := list(islice(records, _BATCH)):
        parsed: list[tuple[Record, Parts] | RecordError] = []
        for record in batch:
            try:
                parsed.append(
                    record if isinstance(record, RecordError) else (record, parse(record, limit, need_prompts))
                )
            except RecordError as error:
                parsed.append(error)
        _tokenize([one for one in parsed if isinstance(one, tuple)], encode)
        for one in parsed:
            yield one if isinstance(one, RecordError) else (one[0], _output(*one))


Parts = dict[str, Ids | str | None]
"""`prompt` and `output` of a record: ids, or text that is to be tokenized, or None."""


def _output(record: Record, parts: Parts) -> Output:
    fields, prompt, output = record.fields, parts["prompt"], parts["output"]
    assert not isinstance(prompt, str)
    assert isinstance(output, np.ndarray)
    says = (fields.get("marked"), fields["mark"] is not None if "mark" in fields else None)
    marked = True if True in says else False if False in says else None
    text = None if prompt is None else fields.get("prompt") or None
    return Output(record.name, prompt, output, fields.get("ended"), marked, fields.get("sequential") is True, text)


def parse(record: Record, limit: int, need_prompts: bool) -> Parts:
    """A record's prompt and output, as ids (below `limit`) where it has them, else as text.

    Raises:
        RecordError: the output is not there; ids are malformed, or empty beside a text; or the prompt lies in fields
            that cannot be read, and it is needed.
    """
    fields = record.fields
    prompt = prompt_of(record) if need_prompts and not _some(fields.get("prompt_ids")) else fields.get("prompt")
    parts: Parts = {}
    for name, text in (("prompt", prompt), ("output", fields.get("output"))):
        ids = fields.get(f"{name}_ids")
        if ids is None:
            parts[name] = text if name == "output" or need_prompts else None
            continue
        parts[name] = found = check_ids(record, f"{name}_ids", ids, limit)
        if not len(found) and text is not None and text.strip():
            raise record.error(f"'{name}_ids' is empty, and there is a text for it", "leave the empty ids out")
    if parts["output"] is None:
        raise record.error("the record has neither 'output_ids' nor 'output'", f"it has {_names(record)}")
    return parts


def _some(ids: Any) -> bool:
    return ids is not None and (not isinstance(ids, list | np.ndarray) or len(ids) > 0)


_NAMED: Final = 20  # fields in a hint


def _names(record: Record) -> str:
    """The names of a record's fields, for a hint; of a Parquet file all columns, most of which were not read."""
    names = list(record.fields)
    if _kind(record.path) == "parquet":
        with _open_parquet(record.path) as file:
            names = file.schema_arrow.names
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*map(repr, names[:_NAMED]), *more]) or "no fields"


def check_ids(record: Record, name: str, ids: Any, limit: int) -> Ids:
    """A list (or array) of token ids below `limit` as int64 [length]. Raises RecordError."""
    integers = isinstance(ids, np.ndarray) or (isinstance(ids, list) and set(map(type, ids)) <= {int})
    array = np.asarray(ids if integers else None)  # numpy would take booleans among integers for integers
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise record.error(f"'{name}' must be a list of token ids", "whole numbers, one list a record")
    outside = (array < 0) | (array >= limit)
    if outside.any():
        position = int(outside.argmax())
        raise record.error(
            f"'{name}' holds id {array[position]} at position {position}, outside the vocabulary of {limit}",
            "were these outputs made with the mark's tokenizer?",
        )
    return array.astype(np.int64)


def _tokenize(records: list[tuple[Record, Parts]], encode: Encode) -> None:
    """Replace the texts by their ids, in place."""
    slots = [
        (record, parts, name) for record, parts in records for name, part in parts.items() if isinstance(part, str)
    ]
    if not slots:
        return
    try:
        encoded = encode([str(parts[name]) for _, parts, name in slots])
    except TokenizerError as error:
        record, _, name = slots[0]
        message = f"'{name}' is text and must be tokenized: {error}"
        raise InputError(record.path, record.line, message, error.hint) from error
    for (_, parts, name), ids in zip(slots, encoded, strict=True):
        parts[name] = np.asarray(ids, dtype=np.int64)


def digest(outputs: Sequence[Output]) -> str:
    """SHA-256 over the outputs' ids and tokens, in order, 64 hex characters."""
    whole = [[one.id, one.ids[: one.start].tolist(), one.output_ids.tolist()] for one in outputs]
    return hashlib.sha256(json.dumps(whole, separators=(",", ":")).encode()).hexdigest()
