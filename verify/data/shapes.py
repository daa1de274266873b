"""Logs as people have them: a file's shape is recognised, and its records become records of outputs.

A file's shape is that of the first of its records that has one; a record of another shape is malformed. What comes out
are records with our own fields (see `verify.data.outputs`), one for each output: a record may hold several, and an
answer that came in chunks takes many. `steps` is added where a record has log probabilities: what was said at each
token of the output, with the tokens as the server names them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from verify.data.beside import SHOWN_IDS, ids_beside, texts_beside
from verify.data.columns import KEPT, Columns, check_columns, mapped, of_another_shape, unknown, wanted
from verify.data.conversations import ShapeError
from verify.data.formats import (
    ANSWERS,
    CONVERSATIONS,
    DOCUMENTS,
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
    of_choices,
    prompt_of,
)
from verify.data.sources import no_records, read_part, split
from verify.data.streams import Chunks, is_piece, joined
from verify.data.tables import Part
from watermark.io.fields import is_name
from watermark.io.prompts import OTHER_PROMPTS
from watermark.io.records import Record, RecordError, checked

OURS: Final = (*KEPT, "prompt", "prompt_ids", "output", "output_ids", "context_ids", "top_logprobs")
"""Fields of our own records of outputs and log probabilities."""

FIELDS: Final = frozenset(
    (
        *OURS, *OTHER_PROMPTS, *PROMPTS, *DOCUMENTS, *REQUESTS, *RESPONSES, *ANSWERS, *CONVERSATIONS, *NAMES,
        *SHOWN_IDS, "choices", "outputs", "resps", "arguments", "object", "error", "message", "done",
    )
)  # fmt: skip
"""What is read of a record."""

OUR_SHAPE: Final = "plain outputs ('output' or 'output_ids')"

_FIRST: Final = 100  # records among which a file's shape is looked for


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
        beside: names of fields that are not known, whose text is taken for shown to the suspect.

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
        self.beside: set[str] = set()
        self._native = False
        self._chunks = Chunks()

    def __iter__(self) -> Iterator[Record | RecordError]:
        if not self.whole:
            self.shape, self._native = shape_of(self.part.path, self.columns)
        empty = True
        for number, read in enumerate(self._records(), 1):
            empty = False
            if isinstance(read, RecordError):
                yield read
                continue
            try:
                yield from self._take(read, first=number <= _FIRST)
            except RecursionError:
                yield read.error("the record is nested too deeply")
        yield from self._streamed(self._chunks.rest())
        if empty and self.whole and self.part.stop is None:
            raise no_records(self.part.path)

    def _records(self) -> Iterator[Record | RecordError]:
        return read_part(self.part, _wanted(self.columns, self.keep), texts=self.columns is None)

    def _take(self, read: Record, *, first: bool) -> list[Record | RecordError]:
        """The outputs in one record; first: the file's shape may be learned from it."""
        record = read if self.columns is None else mapped(read, self.columns, self.keep)
        fields = record.fields
        if self.shape is None and not self._native and first:
            self.shape, self._native = _shape(fields)
        if self._native:
            if not _is_native(fields) and "output" not in fields:
                other = _shape(fields)[0]
                return [unknown(read, self.columns) if other is None else of_another_shape(record, OUR_SHAPE)]
            return [self._counted(self._with_text_beside(_native(record, self.keep), fields))]
        if self.shape is STREAM and is_piece(fields):
            return list(self._streamed(self._chunks.add(record)))
        if self.shape is not None and self.shape.fits(fields):
            return list(self._answers(record, self.shape.read))
        if failed(fields):
            self.failed += 1
            return []
        return [unknown(read, self.columns) if self.shape is None else of_another_shape(record, self.shape.name)]

    def _streamed(self, found: Iterable[tuple[Record, list[Fields]]]) -> Iterator[Record | RecordError]:
        for first, chunks in found:
            yield from self._answers(first, partial(_of_chunks, chunks))

    def _answers(self, record: Record, read: Callable[[Fields], list[Answer]]) -> Iterator[Record | RecordError]:
        """The outputs of one record."""
        try:
            answers = read(record.fields)
        except ShapeError as error:
            yield record.error(str(error), error.hint)
            return
        self.failed += not answers
        for i, answer in enumerate(answers):
            if answer.output is None and answer.output_ids is None:
                yield record.error("the suspect's answer in this record holds no text")
                continue
            made = _as_record(record, answer, i, self.keep)
            yield self._counted(self._with_text_beside(made, record.fields))

    def _with_text_beside(self, record: Record | RecordError, read: Fields) -> Record | RecordError:
        """The record with the text under names that are not known; read: the fields that it was made of."""
        if isinstance(record, RecordError) or self.columns is not None:
            return record
        found = texts_beside(read, FIELDS | set(self.keep))
        self.beside |= found.keys()
        shown = [record.fields.get("beside"), *found.values()]
        text = "\n".join(one for one in shown if isinstance(one, str))
        return Record(record.path, record.line, {**record.fields, "beside": text}) if found else record

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
        if isinstance(read, RecordError):
            continue
        found = _shape(read.fields if columns is None else mapped(read, columns, ()).fields)
        if found != (None, False):
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
    return isinstance(fields.get("output"), str) or not {"output_ids", "context_ids", "top_logprobs"}.isdisjoint(fields)


_SHOWN_BESIDE: Final = frozenset((*PROMPTS, *DOCUMENTS)) - {"prompt"}


def _native(record: Record, keep: Collection[str]) -> Record | RecordError:
    """A record of our own with all that was shown as its prompt, or as text beside its ids."""
    if (name := ids_beside(record.fields)) is not None:
        return record.error(
            f"there is no prompt, and '{name}' may hold what the model was shown",
            "name what it was shown `prompt_ids`, or say with `columns` where prompt and output are",
        )
    ids, beside = record.fields.get("prompt_ids"), _SHOWN_BESIDE & record.fields.keys()
    if "prompt_ids" in record.fields and isinstance(record.fields.get("answer"), Mapping):
        beside -= set(REQUESTS)  # our logs keep them; where a text was read and nothing written, it is the prompt there
    if not (beside or isinstance(record.fields.get("prompt"), list)):
        return checked(record)
    fields = {name: value for name, value in record.fields.items() if name not in _SHOWN_BESIDE - beside}
    output = fields.get("output")
    try:
        prompt = prompt_of(fields, output if isinstance(output, str) else None)
    except ShapeError as error:
        return record.error(str(error), error.hint)
    kept = {name: value for name, value in fields.items() if name not in beside or name in keep}
    if ids is not None and not _is_empty(ids):
        return checked(Record(record.path, record.line, kept | {"beside": prompt}))
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
    named["beside"] = answer.beside
    said |= {name: value for name, value in named.items() if value is not None and not _is_empty(value)}
    if "output_ids" in said or "prompt_ids" in said:
        said["own_ids"] = True  # of the suspect's tokenizer, which may be another than the mark's
    return checked(Record(record.path, record.line, said))


def _of_chunks(chunks: Sequence[Fields], fields: Fields) -> list[Answer]:
    return of_choices(fields, joined(chunks))


def _is_empty(value: Any) -> bool:
    return isinstance(value, Sized) and len(value) == 0


def _wanted(columns: Columns | None, keep: Collection[str]) -> frozenset[str]:
    return FIELDS | set(keep) if columns is None else wanted(columns, keep)
