"""Read a suspect's outputs into token sequences.

A record has `output_ids` and/or `output`, and may have `prompt_ids` and/or `prompt`, `id` and `ended`; ids win over
text. A `.txt` file is one output. Logs of other shapes become such records in `verify.data.shapes`, and files of other
kinds are read by `verify.data.sources`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
import numpy.typing as npt

from verify.data.columns import Columns
from verify.data.drift import Drift
from verify.data.shapes import Answers, described, tally
from verify.data.sources import files_of
from watermark import InputError, Mark, TokenizerError
from watermark.io.fields import is_int, not_wanted
from watermark.io.prompts import prompt_of
from watermark.io.records import Record, RecordError
from watermark.prf import NO_TOKEN
from watermark.progress import Progress, silent
from watermark.tokenizers import Encode, encoder

if TYPE_CHECKING:
    from watermark.generation import Written

_BATCH: Final = 512  # records tokenized together
_SHOWN_EVERY: Final = 100

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Output:
    """One output of a suspect as token ids, int64 [length].

    prompt_ids is None when the record names no prompt; prompt is its text, where the record has that too. ended:
    whether the model stopped by itself; None when the record does not say. marked: whether it says that it was
    generated with a mark, as `stillmark generate` does. sequential: it was collected until the evidence sufficed, as
    `stillmark test endpoint` does, so that only a sequential test may use it. copied: bool [output], which tokens of
    the output stand in the prompt in another spelling (`verify.data.folding`); None: nobody looked.
    """

    id: str
    prompt_ids: Ids | None
    output_ids: Ids
    ended: bool | None = None
    marked: bool | None = None
    sequential: bool = False
    prompt: str | None = None
    copied: npt.NDArray[np.bool_] | None = None

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
        read_as: the shape of logs that are no records of our own, and how many answers they held; else empty.
        compared: outputs of which both text and ids were given, and compared.
        differing: those of them whose ids spell another text.
        first_differing: file and line of the first of these.
        beside: names of fields that are not known, whose text was taken for shown to the suspect.
    """

    outputs: tuple[Output, ...] = field(repr=False)
    files: tuple[Path, ...] = ()
    bad: int = 0
    first_bad: InputError | None = None
    read_as: str = ""
    compared: int = 0
    differing: int = 0
    first_differing: tuple[Path, int] | None = None
    beside: tuple[str, ...] = ()

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


def output_of(written: Written) -> Output:
    """What a call of `watermark.generate` wrote, as an output."""
    return Output(
        written.id, written.prompt_ids, written.output_ids, written.ended, written.marked, prompt=written.prompt
    )


def read_outputs(
    paths: str | Path | Iterable[str | Path],
    mark: Mark,
    *,
    tokenizer: str | Path | None = None,
    columns: Columns | None = None,
    need_prompts: bool = True,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> Outputs:
    """The outputs in some files as token sequences.

    The shape of the records is recognised: our own (`output`, `prompt`, `output_ids`, `prompt_ids`), or a log of chat
    completions, a conversation, a table of prompts and answers, and so on.

    Args:
        paths: a file or a folder of files, or some: .jsonl (.ndjson, .json), .csv, .tsv or .txt, perhaps with .gz or
            .zst behind; .parquet (.pq) or .arrow.
        mark: by whose tokenizer texts become ids, and below whose vocabulary's size ids must lie.
        tokenizer: folder of that tokenizer; None: where it was when the mark was made. It is loaded only if a record
            has text and no ids.
        columns: where the fields are in records of no known shape: `{"prompt": "question", "output": "model.text"}`.
        need_prompts: False: a prompt without ids is left out.
        skip_bad: count malformed records instead of stopping at the first.
        progress: called with the number of records read; of how many is not known.

    Raises:
        InputError: a file cannot be read, a record is malformed (RecordError), or, with `skip_bad`, all of them are.
            A text must be tokenized and cannot be.
    """
    files = files_of(paths if isinstance(paths, str | Path) else list(paths))
    encode = encoder(mark, None if tokenizer is None else Path(tokenizer))
    outputs: list[Output] = []
    bad, first_bad, drift = 0, None, Drift(mark, tokenizer)
    read = [Answers(path, columns) for path in files]
    stream = (record for one in read for record in one)
    for number, found in enumerate(to_outputs(stream, encode, mark.vocabulary_size, need_prompts), 1):
        if isinstance(found, tuple):
            outputs.append(found[1])
            drift.look(found[0], found[1].output_ids.tolist())
        elif skip_bad:
            bad, first_bad = bad + 1, first_bad or found
        else:
            raise found
        if number % _SHOWN_EVERY == 0:
            progress(number, None)
    if first_bad is not None and not outputs:
        raise none_good(files, bad, str(first_bad))
    first = None if drift.first is None else (drift.first.path, drift.first.line)
    beside = tuple(sorted(set().union(*(one.beside for one in read))))
    return Outputs(
        tuple(outputs), files, bad, first_bad, described(tally(read)), drift.compared, drift.differing, first, beside
    )


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
        records: from `verify.data.shapes.Answers`.
        encode: texts to ids; called only for records that have no ids.
        vocabulary_size: ids must lie below it; None: below 2**32 - 1.
        need_prompts: False: a prompt without ids is left out.

    Raises:
        InputError: a file cannot be read; a text must be tokenized and `encode` cannot.
    """
    limit = NO_TOKEN if vocabulary_size is None else vocabulary_size
    while batch := list(islice(records, _BATCH)):
        parsed: list[tuple[Record, Parts] | RecordError] = []
        for record in with_our_ids(batch, encode):
            try:
                parsed.append(
                    record if isinstance(record, RecordError) else (record, parse(record, limit, need_prompts))
                )
            except RecordError as error:
                parsed.append(error)
        _tokenize([one for one in parsed if isinstance(one, tuple)], encode)
        for one in parsed:
            yield one if isinstance(one, RecordError) else (one[0], _output(*one))


def with_our_ids(records: Sequence[Record | RecordError], encode: Encode) -> list[Record | RecordError]:
    """Records of a log whose ids are tokens of the suspect (`own_ids`), without these where they are not the mark's.

    They are the mark's if they mostly agree with those of the text; if there is no text, or no tokenizer, they are
    taken for the mark's. A record that needs them otherwise is malformed.
    """
    asked = [one for one in records if isinstance(one, Record) and "own_ids" in one.fields and one.fields.get("output")]
    try:
        encoded = iter(encode([one.fields["output"] for one in asked])) if asked else iter(())
    except TokenizerError:
        return list(records)
    chosen = {id(one): _chosen(one, ids) for one, ids in zip(asked, encoded, strict=True)}
    return [chosen.get(id(one), one) for one in records]


def _chosen(record: Record, ours: Sequence[int]) -> Record | RecordError:
    fields = record.fields
    said = fields.get("output_ids")
    theirs = [int(i) for i in said if is_int(i)] if isinstance(said, list | np.ndarray) else []
    if not theirs or 2 * sum((Counter(ours) & Counter(theirs)).values()) >= len(ours):
        return record
    if fields.get("prompt_ids") is not None and fields.get("prompt") is None:
        message = "the ids of the prompt are not those of the mark's tokenizer, and there is no text of it"
        return record.error(message, "what the suspect was shown must be known: add the 'prompt'")
    return Record(record.path, record.line, {k: v for k, v in fields.items() if k not in ("prompt_ids", "output_ids")})


Parts = dict[str, Ids | str | None]
"""`prompt` and `output` of a record: ids, or text that is to be tokenized, or None."""


def _output(record: Record, parts: Parts) -> Output:
    fields, prompt, output = record.fields, parts["prompt"], parts["output"]
    assert not isinstance(prompt, str)
    assert isinstance(output, np.ndarray)
    says = (fields.get("marked"), fields["mark"] is not None if "mark" in fields else None)
    marked = True if True in says else False if False in says else None
    text = "\n".join(one for one in (fields.get("prompt"), fields.get("beside")) if isinstance(one, str)) or None
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
        there = [name for name in ("output", "output_ids") if name in fields]
        raise record.error("the record has no output" + (f": '{there[0]}' is null" if there else ""))
    return parts


def _some(ids: Any) -> bool:
    return ids is not None and (not isinstance(ids, list | np.ndarray) or len(ids) > 0)


def check_ids(record: Record, name: str, ids: Any, limit: int) -> Ids:
    """A list (or array) of token ids below `limit` as int64 [length]. Raises RecordError."""
    integers = isinstance(ids, np.ndarray) or (isinstance(ids, list) and set(map(type, ids)) <= {int})
    array = np.asarray(ids if integers else None)  # numpy would take booleans among integers for integers
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise record.error(not_wanted(name, "a list of token ids", ids), "whole numbers, one list a record")
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
