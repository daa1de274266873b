"""Whether the token ids of records are the mark's: what they spell is held against the text beside them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from verify.data.sources import read_records
from watermark import InputError, Mark, TokenizerError
from watermark.io.fields import is_int, is_text, list_of
from watermark.io.records import Record
from watermark.tokenizers import Tokenizer, load_for

_LOOKED_AT: Final = 32  # records of a file


def check_spelling(files: Sequence[Path], mark: Mark, tokenizer: str | Path | None) -> tuple[str, ...]:
    """Notes on records that have both `output` and `output_ids`, where the ids spell another text.

    Looks at the first records of each file; at none where the mark's tokenizer is not at hand.

    Raises:
        InputError: the ids of all records that were looked at spell another text: they are another tokenizer's.
    """
    known: Tokenizer | None = None
    looked, wrong = 0, list[tuple[Path, Record]]()
    for path in files:
        for record in islice(read_records(path), _LOOKED_AT):
            if isinstance(record, InputError) or not _has_both(record):
                continue
            if known is None:
                try:
                    known = load_for(mark, tokenizer)
                except TokenizerError:
                    return ()
            looked += 1
            if not _spells(known, record):
                wrong.append((path, record))
    if not wrong:
        return ()
    path, first = wrong[0]
    if len(wrong) == looked:
        raise InputError(
            path,
            first.line,
            "'output_ids' do not spell 'output' with the mark's tokenizer",
            "ids of another tokenizer are other tokens: leave the ids out, and the text is tokenized anew",
        )
    return (f"Of {looked} records that were looked at, {len(wrong)} have ids that spell another text than `output`.",)


def _has_both(record: Record) -> bool:
    fields = record.fields
    if fields.get("sequential") is True:  # where a token's name told no id, another stands for it
        return False
    text: Any = fields.get("output")
    ids: Any = fields.get("output_ids")
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    return is_text(text) and bool(text.strip()) and list_of(is_int)(ids) and bool(ids)


def _spells(tokenizer: Tokenizer, record: Record) -> bool:
    ids, text = [int(i) for i in record.fields["output_ids"]], str(record.fields["output"])
    try:
        return any(tokenizer.decode(ids, skip).strip() == text.strip() for skip in (True, False))
    except TokenizerError:
        return True  # ids that are none are an error elsewhere
