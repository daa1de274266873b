"""Logs with log probabilities: records of our own, or answers of servers, whose names of tokens become ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from verify.data.columns import Columns
from verify.data.logprobs import TextLogprobs, from_record
from verify.data.outputs import check_ids, none_good, with_our_ids
from verify.data.shapes import Answers, described, has_logprobs, tally
from verify.suspects.vocabulary import TELLING, Vocabulary, useless
from watermark import InputError, Mark
from watermark.io.records import Record, RecordError
from watermark.prf import NO_TOKEN
from watermark.progress import Progress, silent
from watermark.tokenizers import load_for

FEW: Final = 20
"""Answers of a log that are looked at to see whether it has log probabilities."""


class UnusableLogprobsError(InputError):
    """A log has log probabilities, and nothing can be told from them."""


def has_any_logprobs(path: Path, columns: Columns | None = None) -> bool:
    """Whether any of the first answers in a file has log probabilities; of our own records, the first."""
    read = Answers(path, columns)
    few = [one for one in islice(read, FEW) if isinstance(one, Record)]
    return any(map(has_logprobs, few[:1] if read.shape is None else few))


@dataclass(frozen=True)
class Logs:
    """What the answers in some logs say of each token.

    Attributes:
        texts: one for each answer with log probabilities.
        read_as: in words what was read; empty for records of our own.
        bad: malformed records that were left out.
        first_bad: what was wrong with the first of them.
        left_out: answers whose tokens are not those of the mark's tokenizer, and do not spell the text.
        beside: names of fields that are not known, whose text was taken for shown to the suspect.
    """

    texts: list[TextLogprobs]
    read_as: str
    bad: int = 0
    first_bad: InputError | None = None
    left_out: int = 0
    beside: tuple[str, ...] = ()


def read_logs(
    files: Sequence[Path],
    mark: Mark,
    *,
    tokenizer: str | Path | None = None,
    columns: Columns | None = None,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> Logs:
    """The log probabilities in some logs.

    Answers without log probabilities are left out of logs that are not our own.

    Args:
        files: the logs.
        mark: whose tokens are scored.
        tokenizer: folder of its tokenizer, if not where the mark says; loaded if tokens are named by text.
        columns: where the fields are in records of no known shape.
        skip_bad: count malformed records instead of stopping at the first.
        progress: called with the number of texts so far.

    Raises:
        UnusableLogprobsError: the log probabilities tell nothing, or the tokens are not those of the mark's tokenizer.
        InputError: a file cannot be read, or a record is malformed.
        TokenizerError: tokens are named by text, and the mark's tokenizer cannot be loaded.
    """
    limit = NO_TOKEN if mark.vocabulary_size is None else mark.vocabulary_size
    texts: list[TextLogprobs] = []
    reader: _Reader | None = None
    bad, first_bad = 0, None
    read = [Answers(path, columns) for path in files]
    for log in read:
        for record in log:
            progress(len(texts), None)
            try:
                if isinstance(record, InputError):
                    raise record
                if log.shape is None:
                    texts.append(from_record(record, limit))
                elif has_logprobs(record):
                    reader = reader or _Reader(mark, tokenizer, limit)
                    texts += reader.read(record)
            except RecordError as error:
                if not skip_bad:
                    raise
                bad, first_bad = bad + 1, first_bad or error
    if first_bad is not None and not texts and reader is None:
        raise none_good(files, bad, str(first_bad))
    left_out = 0 if reader is None else reader.left_out
    if reader is not None and (not reader.useful or left_out > len(texts)):
        where = ", ".join(map(str, files))
        raise UnusableLogprobsError(where, 0, f"no log probability can be used: {reader.why}", USE_TEXT)
    return Logs(
        texts,
        described(tally(read)),
        bad,
        first_bad,
        left_out,
        tuple(sorted(set().union(*(one.beside for one in read)))),
    )


USE_TEXT: Final = "test the text, by `stillmark test text` or `verify.text_test`"
NOT_OURS: Final = "tokens are not those of the mark's tokenizer, and do not spell the text"


class _Reader:
    """Reads answers whose tokens are named by text, bytes or ids of the suspect.

    useful: some answer's log probabilities tell something. why: why one that tells nothing does not. left_out: answers
    whose tokens are not those of the mark's tokenizer, and do not spell the text.
    """

    def __init__(self, mark: Mark, tokenizer: str | Path | None, limit: int) -> None:
        loaded = load_for(mark, tokenizer)
        self.vocabulary, self.limit = Vocabulary(loaded, min(limit, len(loaded))), limit
        self.stand_in = next(iter(mark.exempt), 0)  # for a token that cannot be told: it is never scored itself
        self.useful, self.left_out = False, 0
        self.why = "no answer names enough tokens"

    def read(self, record: Record) -> list[TextLogprobs]:
        """What one answer says; nothing if its tokens cannot be told."""
        (found,) = with_our_ids([record], self._encode)
        if isinstance(found, RecordError):
            raise found
        record = found
        fields, steps = record.fields, record.fields["steps"]
        text = fields.get("output")
        if text is None:
            text = self.vocabulary.text(check_ids(record, "output_ids", fields["output_ids"], self.limit).tolist())
        told = self.vocabulary.told(steps, text)
        translated = None if told.exact else self.vocabulary.translated(steps, text)
        if translated is None and not told.fits:
            self.left_out += 1
            self.why = f"the {NOT_OURS}"
            return []
        why = useless(steps)
        self.useful = self.useful or why is None
        self.why = why if why is not None and len(steps) >= TELLING else self.why
        prompt = fields.get("prompt_ids")
        if prompt is None:
            prompt = self.vocabulary.encode(fields.get("prompt") or "")
        ours: dict[str, Any] = {
            "output_ids": [self.stand_in if i is None else i for i in told.ids],
            "top_logprobs": [[[i, p] for i, p in top.items()] or None for top in told.tops],
        }
        words = [one for one in (fields.get("prompt"), fields.get("beside")) if isinstance(one, str)]
        ours = {"prompt_ids": prompt, "beside": "\n".join(words)} | (
            ours if translated is None else translated.fields()
        )
        kept = {name: fields[name] for name in ("id", "marked", "sampled", "sequential") if name in fields}
        return [from_record(Record(record.path, record.line, kept | ours), self.limit)]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [self.vocabulary.encode(text) for text in texts]
