"""Logs as people have them: a file's shape is recognised, and its records become records of outputs.

A file's shape is that of the first of its records that has one; a record of another shape is malformed. What comes out
are records with our own fields (see `verify.data.outputs`), one for each output: a record may hold several, and an
answer that came in chunks takes many. `steps` is added where a record has log probabilities: what was said at each
token of the output, with the tokens as the server names them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

from verify.data.conversations import ShapeError
from verify.data.dialects import dig
from verify.data.formats import (
    ANSWERS,
    CONVERSATIONS,
    NAMES,
    PROMPTS,
    REQUESTS,
    RESPONSES,
    SHAPES,
    STREAM,
    Answer,
    Fields,
    Shape,
    failed,
    joined,
    of_choices,
    prompt_of,
)
from verify.data.sources import Part, columns_of, no_records, read_part, split
from watermark import UsageError
from watermark.io.fields import is_name, is_text
from watermark.io.prompts import OTHER_PROMPTS
from watermark.io.records import Record, RecordError, checked

Columns = Mapping[str, str]
"""Our name of a field: the name, or the dotted path, that it has in the records of a file."""

KEPT: Final = ("id", "ended", "mark", "marked", "sampled", "sequential")
"""What a record says of itself, whatever its shape."""

OURS: Final = (*KEPT, "prompt", "prompt_ids", "output", "output_ids", "context_ids", "top_logprobs")
"""Fields of our own records of outputs and log probabilities."""

FIELDS: Final = frozenset(
    (
        *OURS, *OTHER_PROMPTS, *PROMPTS, *REQUESTS, *RESPONSES, *ANSWERS, *CONVERSATIONS, *NAMES, "choices", "outputs",
        "prompt_token_ids", "resps", "arguments", "object", "error", "message", "done",
    )
)  # fmt: skip
"""What is read of a record."""

COLUMNS: Final = (
    "id", "prompt", "prompt_ids", "output", "output_ids", "messages", "conversations", "request", "response",
)  # fmt: skip
"""What `columns` may name."""

_FIRST: Final = 100  # records among which a file's shape is looked for
_NAMED: Final = 20  # fields in a hint
_OPEN: Final = 256  # answers whose chunks come in turns
_LIKELY: Final = ("text", "content", "generation", "generated_text", "model_output", "reply")


def check_columns(columns: Columns | None) -> None:
    """Raises UsageError if a field is named that records do not have, or no output."""
    if columns is None:
        return
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise UsageError(f"`columns` names '{unknown[0]}'", f"it may name {', '.join(COLUMNS)}")
    if not set(columns) & {"output", "output_ids", "messages", "conversations", "response"}:
        raise UsageError("`columns` does not say where the output is", "such as output=text")


class Answers:
    """The outputs in one file, or a part of it, as records with our own fields; a malformed one is a RecordError.

    What was seen is counted while it is iterated, once.

    Args:
        part: the file or the part.
        columns: where the fields are, if the file has no shape that is known. Then other fields are not looked at,
            but for what a record says of itself.
        keep: further fields to keep, strings.

    Attributes:
        shape: the shape; None: records of our own, or not known yet.
        answers: outputs so far.
        with_logprobs: those of them with log probabilities.
        failed: requests without an answer, which are no outputs.

    Raises, while it is iterated:
        InputError: the file cannot be read, holds nothing (if it is the whole file), or is of no known kind.
    """

    def __init__(self, part: Path | Part, columns: Columns | None = None, keep: Collection[str] = ()) -> None:
        check_columns(columns)
        self.part = Part(part) if isinstance(part, Path) else part
        self.whole = self.part.start == 0 and not self.part.group and self.part.line == 1
        self.columns, self.keep = columns, tuple(keep)
        self.shape: Shape | None = None
        self.answers = self.with_logprobs = self.failed = 0
        self._native = False
        self._chunks = _Chunks()

    def __iter__(self) -> Iterator[Record | RecordError]:
        if not self.whole:
            self.shape, self._native = shape_of(self.part.path, self.columns)
        empty = True
        for number, read in enumerate(read_part(self.part, _wanted(self.columns, self.keep)), 1):
            empty = False
            if isinstance(read, RecordError):
                yield read
                continue
            try:
                yield from self._take(read, first=number <= _FIRST)
            except RecursionError:
                yield read.error("the record is nested too deeply")
        yield from self._answers(self._chunks.rest())
        if empty and self.whole and self.part.stop is None:
            raise no_records(self.part.path)

    def _take(self, read: Record, *, first: bool) -> list[Record | RecordError]:
        """The outputs in one record; first: the file's shape may be learned from it."""
        record = _mapped(read, self.columns, self.keep)
        fields = record.fields
        if self.shape is None and not self._native and first:
            self.shape, self._native = _shape(fields)
        if self._native:
            if not _is_native(fields):
                return [_unknown(read, self.columns)]
            return [self._counted(_native(record))]
        if self.shape is STREAM and _is_piece(fields):
            return list(self._answers(self._chunks.add(record)))
        if self.shape is not None and self.shape.fits(fields):
            return list(self._answers([(record, self.shape.read)]))
        if failed(fields):
            self.failed += 1
            return []
        return [_unknown(read, self.columns) if self.shape is None else _other(record, self.shape)]

    def _answers(self, found: Iterable[tuple[Record, Any]]) -> Iterator[Record | RecordError]:
        """The outputs of some records, each with the function that reads them."""
        for record, read in found:
            try:
                answers: list[Answer] = read(record.fields)
            except ShapeError as error:
                yield record.error(str(error), error.hint)
                continue
            self.failed += not answers
            for i, answer in enumerate(answers):
                yield self._counted(_as_record(record, answer, i, self.keep))

    def _counted(self, record: Record | RecordError) -> Record | RecordError:
        if isinstance(record, Record):
            self.answers += 1
            self.with_logprobs += has_logprobs(record)
        return record


def has_logprobs(record: Record) -> bool:
    """Whether a record of an output has log probabilities."""
    return bool(record.fields.get("steps")) or record.fields.get("top_logprobs") is not None


Tally = dict[str, list[int]]
"""By shape: outputs, those of them with log probabilities, and records without an answer."""


def tally(read: Iterable[Answers]) -> Tally:
    """What was read of logs that are no records of our own."""
    counts = [{one.shape.name: [one.answers, one.with_logprobs, one.failed]} for one in read if one.shape is not None]
    return added(counts)


def added(tallies: Iterable[Tally]) -> Tally:
    """The sum of some tallies."""
    total: Tally = {}
    for one in tallies:
        for name, counts in one.items():
            total[name] = [a + b for a, b in zip(total.get(name, [0, 0, 0]), counts, strict=True)]
    return total


def described(total: Tally) -> str:
    """What was read, in one line; empty for records of our own.

    >>> described({"chat completions": [812, 812, 3]})
    'chat completions, 812 answers, log probabilities for all, 3 records without an answer'
    """
    return "; ".join(_described(name, *counts) for name, counts in total.items())


def _described(name: str, answers: int, with_logprobs: int, without: int) -> str:
    told = "all" if with_logprobs == answers else f"{with_logprobs:,}"
    words = [name, f"{answers:,} answers", f"log probabilities for {told}" if with_logprobs else ""]
    return ", ".join(filter(None, (*words, f"{without:,} records without an answer" if without else "")))


def shape_of(path: Path, columns: Columns | None = None) -> tuple[Shape | None, bool]:
    """The shape of a file, and whether it holds our own records; None and False: no shape that is known."""
    for read in islice(read_part(Part(path), _wanted(columns, ())), _FIRST):
        found = None if isinstance(read, RecordError) else _shape(_mapped(read, columns, ()).fields)
        if found is not None and found != (None, False):
            return found
    return None, False


def parts(path: Path, tokens: int, columns: Columns | None = None) -> Iterator[tuple[Part, int]]:
    """As `verify.data.sources.split`; a file of chunks is one part, for its answers are cut into records.

    Raises:
        InputError: the file cannot be read, or is of no known kind.
    """
    found = list(split(path, tokens))
    if len(found) > 1 and shape_of(path, columns)[0] is STREAM:
        found = [(Part(path), sum(number for _, number in found))]
    yield from found


def _shape(fields: Fields) -> tuple[Shape | None, bool]:
    if _is_native(fields):
        return None, True
    with suppress(RecursionError):
        return next((shape for shape in SHAPES if shape.fits(fields)), None), False
    return None, False


def _is_native(fields: Fields) -> bool:
    return isinstance(fields.get("output"), str) or "output_ids" in fields or "context_ids" in fields


_SHOWN_BESIDE: Final = frozenset(PROMPTS) - {"prompt"}


def _native(record: Record) -> Record | RecordError:
    """A record of our own with all that was shown as its prompt, if it has no ids of it."""
    fields = record.fields
    ids, beside = fields.get("prompt_ids"), isinstance(fields.get("prompt"), list) or _SHOWN_BESIDE & fields.keys()
    if (ids is not None and not _is_empty(ids)) or not beside:
        return checked(record)
    output = fields.get("output")
    try:
        prompt = prompt_of(fields, output if isinstance(output, str) else None)
    except ShapeError as error:
        return record.error(str(error), error.hint)
    kept = {name: value for name, value in fields.items() if name not in _SHOWN_BESIDE}
    return checked(Record(record.path, record.line, kept | {"prompt": prompt or fields.get("prompt")}))


def _as_record(record: Record, answer: Answer, number: int, keep: Collection[str]) -> Record | RecordError:
    """An answer as a record of our own."""
    fields = record.fields
    name = next((fields[name] for name in NAMES if is_name(fields.get(name))), None)
    name = name if name is None or number == 0 else f"{name}#{number}"
    ended = None if answer.stop is None else answer.stop in ("stop", "completed", "end_turn", "eos")
    said = {"id": name, "prompt": answer.prompt, "output": answer.output, "ended": ended, "sampled": True}
    said |= {name: fields[name] for name in ("mark", "marked", "sequential", *keep) if name in fields}
    named = {"prompt_ids": answer.prompt_ids, "output_ids": answer.output_ids, "steps": answer.steps}
    said |= {name: value for name, value in named.items() if value is not None and not _is_empty(value)}
    if "output_ids" in said or "prompt_ids" in said:
        said["own_ids"] = True  # of the suspect's tokenizer, which may be another than the mark's
    return checked(Record(record.path, record.line, said))


def _is_empty(value: Any) -> bool:
    return isinstance(value, Sized) and len(value) == 0


def _is_piece(fields: Fields) -> bool:
    """Whether a record belongs to a stream of chunks, of which some have no choices, or only an end."""
    choices = fields.get("choices")
    return isinstance(choices, list) and all(isinstance(one, Mapping) and "message" not in one for one in choices)


class _Chunks:
    """Answers that come chunk by chunk, several at a time."""

    def __init__(self) -> None:
        self.open: dict[str, tuple[Record, list[Fields]]] = {}
        self.going: dict[str, set[str]] = {}  # choices that have not ended

    def add(self, record: Record) -> Iterator[tuple[Record, Any]]:
        """Takes a chunk; gives the answers that are whole now, or that have waited for too long."""
        name, choices = str(record.fields.get("id")), record.fields["choices"]
        if not choices:
            return  # what the answer cost, say, behind its end
        self.open.setdefault(name, (record, []))[1].append(record.fields)
        going = self.going.setdefault(name, set())
        for choice in choices:
            number = str(dig(choice, "index"))
            going.add(number)
            if dig(choice, "finish_reason"):
                going.remove(number)
        if not going or len(self.open) > _OPEN:
            yield self._whole(name if not going else next(iter(self.open)))

    def rest(self) -> Iterator[tuple[Record, Any]]:
        """The answers whose end never came."""
        for name in list(self.open):
            yield self._whole(name)

    def _whole(self, name: str) -> tuple[Record, Any]:
        first, chunks = self.open.pop(name)
        del self.going[name]
        return first, lambda fields: of_choices(fields, joined(chunks))


# columns and names


def _wanted(columns: Columns | None, keep: Collection[str]) -> frozenset[str]:
    if columns is None:
        return FIELDS | set(keep)
    tops = {path.split(".")[0] for path in columns.values()} | set(columns.values())
    return frozenset(tops | set(KEPT) | set(keep))


def _mapped(record: Record, columns: Columns | None, keep: Collection[str]) -> Record:
    """The record with the fields that `columns` names, where they are there."""
    if columns is None:
        return record
    fields = record.fields
    found = {name: fields[name] for name in (*KEPT, *keep) if name in fields}
    found |= {name: value for name, path in columns.items() if (value := _at(fields, path)) is not None}
    return Record(record.path, record.line, found)


def _at(value: Any, path: str) -> Any:
    if isinstance(value, Mapping) and path in value:
        return value[path]
    for step in path.split("."):
        value = dig(value, int(step) if isinstance(value, list) and step.isdecimal() and len(step) < 9 else step)
    return value


def _unknown(record: Record, columns: Columns | None) -> RecordError:
    message = "the record has neither 'output_ids' nor 'output', and is of no other shape that is known"
    names = names_of(record)
    has = f"it has {_listed(names)}"
    if columns is not None:
        return record.error(f"{message}, with these `columns`", f"the file has {_listed(names)}")
    likely = _likely(record, names)
    return record.error(message, f"{has}; say with `columns` which is what: output={likely}" if likely else has)


def _other(record: Record, shape: Shape) -> RecordError:
    message = f"the records before are {shape.name}, and this one is not"
    return record.error(message, f"it has {_listed(names_of(record))}; records of several shapes need a file each")


def names_of(record: Record) -> list[str]:
    """The names of a record's fields, of those within an object with dots; of a table all columns."""
    columns = columns_of(record.path)
    if columns:
        return columns
    names: list[str] = []
    for name, value in record.fields.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) and value else [name]
    return names


def _listed(names: list[str]) -> str:
    shown = ["".join(c for c in name if c.isprintable())[:60] for name in names[:_NAMED]]
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*map(repr, shown), *more]) or "no fields"


def _likely(record: Record, names: list[str]) -> str | None:
    """The field that most likely holds the output: one of a usual name, or the longest text."""
    last = {name.rpartition(".")[2]: name for name in reversed(names)}
    if usual := [last[name] for name in _LIKELY if name in last]:
        return usual[0]
    texts = {name: value for name in names if is_text(value := _at(record.fields, name))}
    return max(texts, key=lambda name: len(texts[name]), default=None)
