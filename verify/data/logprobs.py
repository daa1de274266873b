"""What can be asked of a suspect: next-token probabilities, read from its weights or recorded from an API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.dialects import is_logprob
from verify.data.outputs import Output, check_ids
from verify.data.pairs import PAIRS, Positions, Reads, contexts_before, scorable_in_order
from verify.data.shapes import Answers
from watermark import InputError, Mark, StillmarkError
from watermark.io.fields import is_int, is_text
from watermark.io.prompts import prompt_of
from watermark.io.records import Record
from watermark.prf import NO_TOKEN

MIN_PROBABILITY: Final = 1e-3
"""A token is likely at a position if its probability exceeds this."""

MIN_LOGPROB: Final = -20.0
"""Smallest log probability that is taken for one: some servers say -9999 of tokens that their sampling cuts off."""


U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

NO_COMMON_BOUNDARY: Final = "no_common_boundary"
AMBIGUOUS_TOKEN: Final = "ambiguous_token"


@dataclass(frozen=True)
class LogprobTable:
    """Next-token log probabilities at P positions, of the likely tokens or the top ones only.

    Attributes:
        contexts: uint32 [P, width], the tokens before each position, oldest first.
        position: int64 [K], which position each entry belongs to, ascending.
        tokens: uint32 [K].
        logprobs: float32 [K], natural logarithms.
        discarded: positions left out, by reason.
        record: int64 [P], the text that each position lies in, from 0.
        unmarked: what the suspect was shown cannot depend on the key.
        reads: what the mark's PRF reads of a pair.
    """

    contexts: U32
    position: I64
    tokens: U32
    logprobs: F32
    discarded: dict[str, int]
    record: I64
    unmarked: bool = True
    reads: Reads = PAIRS

    def __len__(self) -> int:
        return len(self.contexts)


@dataclass(frozen=True)
class Translated:
    """How log probabilities came into the mark's tokens (`verify.data.retokenize`).

    Attributes:
        tokenizer: of the model that said them, by the beginning of its fingerprint; or that it named them by strings
            (`verify.data.strings`).
        cut: the text was cut before each of the mark's tokens, so that no place was chosen by what comes after it.
        ambiguous: places that were read, and where no token could be translated.
    """

    tokenizer: str
    cut: bool
    ambiguous: int = 0


@dataclass(frozen=True)
class TextLogprobs:
    """One text and what a model said of the tokens that come next in it.

    Attributes:
        id: the text's name.
        ids: int64 [length], prompt and output.
        start: where the output begins.
        place: int64 [K], the index in `ids` whose token each entry predicts, ascending.
        tokens: uint32 [K].
        logprobs: float32 [K], natural logarithms.
        sampled: the suspect wrote the output itself; otherwise it was made to read it.
        sequential: it was collected until the evidence sufficed, so that only a sequential test may use it.
        marked: whether the text says that it carries a mark; None: it does not say.
        translated: the model has another tokenizer; None: it has the mark's.
        copied: bool [output], as for `verify.data.outputs.Output`.
        shown: the text of the prompt, and of what the suspect was shown besides, where the record has that.
    """

    id: str
    ids: I64
    start: int
    place: I64
    tokens: U32
    logprobs: F32
    sampled: bool = False
    sequential: bool = False
    marked: bool | None = None
    translated: Translated | None = None
    copied: npt.NDArray[np.bool_] | None = None
    shown: str | None = None


def as_output(text: TextLogprobs) -> Output:
    """The text alone."""
    return Output(text.id, text.ids[: text.start], text.ids[text.start :], copied=text.copied)


def as_text(output: Output) -> TextLogprobs:
    """A text that the suspect wrote, and of which nothing more is known."""
    return TextLogprobs(output.id, output.ids, output.start, *_NOWHERE, sampled=True, copied=output.copied)


def read_recorded(path: Path, mark: Mark) -> list[TextLogprobs]:
    """Recorded log probabilities, from JSONL.

    A record is a position: `context_ids` (all that the suspect saw: rule 2 needs it, unless nothing of it can
    depend on the key) and `top_logprobs`, a list of [token id, natural log probability]. Or it is a text:
    `output_ids`, perhaps `prompt_ids`, and `top_logprobs` with one such list, or null, for each output token;
    `sampled` (true or false) says that the suspect wrote the output itself, and was not made to read it.

    Raises:
        InputError: the file cannot be read, or a record is malformed.
    """
    texts: list[TextLogprobs] = []
    for record in Answers(path):
        if isinstance(record, InputError):
            raise record
        texts.append(from_record(record, _limit(mark)))
    return texts


def scorable_logprobs(
    texts: Sequence[TextLogprobs], width: int, *, unmarked: bool, reads: Reads = PAIRS
) -> LogprobTable:
    """What may be scored of some texts (rule 2, see `verify.data.pairs.scorable_in_order`), as arrays."""
    where: list[I64] = []
    discarded: Counter[str] = Counter()
    seen: set[bytes] = set()
    for text in texts:
        kept, left_out = scorable_in_order(
            text.ids,
            text.start,
            width,
            unmarked=unmarked,
            sampled=text.sampled,
            seen=seen,
            shared=reads.shared,
            copied=text.copied,
        )
        if text.translated is not None and not (unmarked or text.translated.cut or text.sampled):
            raise StillmarkError(
                f"text '{text.id}' was read along another tokenizer's boundaries, which holds for unmarked probes",
                "say so with `unmarked_probes=True`, or read the suspect anew",
            )
        kept, lost = read_places(text, kept)
        left_out.update(lost)
        where.append(kept)
        discarded.update(left_out)
    return replace(logprobs_at(texts, where, width), discarded=dict(discarded), unmarked=unmarked, reads=reads)


def read_places(text: TextLogprobs, places: I64) -> tuple[I64, Counter[str]]:
    """Those of some places of a text at which a model was read, and how many of a translated text were left out."""
    if text.translated is None:
        return places, Counter()
    read = places[np.isin(places, text.place)]
    ambiguous = min(text.translated.ambiguous, len(places) - len(read))
    return read, Counter({AMBIGUOUS_TOKEN: ambiguous, NO_COMMON_BOUNDARY: len(places) - len(read) - ambiguous})


def at_common_places(
    said: Sequence[TextLogprobs], compared: Sequence[TextLogprobs]
) -> tuple[list[TextLogprobs], list[TextLogprobs]]:
    """What two models said of some texts; where one was translated, only at the places at which both were read."""
    if len(said) != len(compared):
        return list(said), list(compared)  # an error elsewhere, which names the first that differs
    pairs = [common_places(one, other) for one, other in zip(said, compared, strict=True)]
    return [one for one, _ in pairs], [other for _, other in pairs]


def common_places(one: TextLogprobs, other: TextLogprobs) -> tuple[TextLogprobs, TextLogprobs]:
    """What two models said of one text; where one was translated, only at the places at which both were read."""
    how = one.translated or other.translated
    if how is None:
        return one, other
    cut = all(text.translated is None or text.translated.cut for text in (one, other))
    how = replace(how, cut=cut)
    return _only_at(one, other.place, how), replace(_only_at(other, one.place, how), sampled=one.sampled)


def _only_at(text: TextLogprobs, places: I64, translated: Translated) -> TextLogprobs:
    kept = np.isin(text.place, places)
    return replace(
        text, place=text.place[kept], tokens=text.tokens[kept], logprobs=text.logprobs[kept], translated=translated
    )


def logprobs_at_positions(texts: Sequence[TextLogprobs], positions: Positions) -> LogprobTable:
    """What a model said at the positions of some outputs, of which `texts` are what it read, one a record."""
    where = np.split(positions.place, np.searchsorted(positions.record, np.arange(1, len(texts))))[: len(texts)]
    return logprobs_at(texts, where, positions.contexts.shape[1])


def logprobs_at(texts: Sequence[TextLogprobs], where: Sequence[I64], width: int) -> LogprobTable:
    """What was said at some places of each text; where nothing was, a position has no entry."""
    contexts: list[U32] = [np.zeros((0, width), np.uint32)]
    entries: list[tuple[I64, U32, F32]] = []
    total = 0
    for text, places_here in zip(texts, where, strict=True):
        kept = np.isin(text.place, places_here)
        position = np.searchsorted(places_here, text.place[kept]) + total
        entries.append((position, text.tokens[kept], text.logprobs[kept]))
        contexts.append(contexts_before(text.ids, places_here, width))
        total += len(places_here)
    position, tokens, logprobs = (np.concatenate(column) for column in zip(_NOWHERE, *entries, strict=True))
    record = np.repeat(np.arange(len(where)), [len(one) for one in where])
    return LogprobTable(np.concatenate(contexts), position, tokens, logprobs, {}, record)


def check_same_positions(
    suspect: LogprobTable, reference: LogprobTable, path: str | Path, reference_path: str | Path
) -> None:
    """Raises InputError, with the first position that differs, unless both were read at the same ones."""
    common = min(len(suspect), len(reference))
    differ = np.flatnonzero((suspect.contexts[:common] != reference.contexts[:common]).any(axis=1))
    if len(differ) or len(suspect) != len(reference):
        number = int(differ[0]) if len(differ) else common
        longer = reference if number < len(reference) else suspect
        raise InputError(
            reference_path,
            int(longer.record[number]) + 1,
            f"position {number + 1} is not the one in {path}",
            "reference records need the same contexts in the same order",
        )


def from_record(record: Record, vocabulary: int) -> TextLogprobs:
    """One record of `read_recorded`; ids lie below `vocabulary`. Raises RecordError."""
    fields, top, name = record.fields, record.fields.get("top_logprobs"), record.name
    if "context_ids" in fields and top is not None:
        ids = check_ids(record, "context_ids", fields["context_ids"], vocabulary)
        tokens, logprobs = _check_top(record, top, vocabulary)
        # the token that came next is unknown, and not needed
        return TextLogprobs(name, np.append(ids, 0), len(ids), np.full(len(tokens), len(ids)), tokens, logprobs)
    if "output_ids" not in fields or (top is None and fields.get("sequential") is not True):
        raise record.error("a position needs 'context_ids' and 'top_logprobs', a text 'output_ids' and 'top_logprobs'")
    shown = None if fields.get("prompt_ids") else prompt_of(record)
    if shown is not None and shown.strip():
        name = next(name for name in ("prompt", "instruction", "input") if fields.get(name))
        raise record.error(f"the record has a '{name}' and no 'prompt_ids'", "what the suspect was shown must be known")
    output = check_ids(record, "output_ids", fields["output_ids"], vocabulary)
    prompt = check_ids(record, "prompt_ids", fields.get("prompt_ids") or [], vocabulary)
    top = [None] * len(output) if top is None else top
    if not isinstance(top, list) or len(top) != len(output):
        raise record.error("a text's 'top_logprobs' must be a list with one list, or null, for each output token")
    tops = [_check_top(record, one, vocabulary) if one else _NOTHING for one in top]
    place = np.repeat(np.arange(len(prompt), len(prompt) + len(output)), [len(tokens) for tokens, _ in tops])
    tokens, logprobs = (np.concatenate(column) for column in zip(_NOTHING, *tops, strict=True))
    whole = np.concatenate([prompt, output])
    flags = (fields.get("sampled") is True, fields.get("sequential") is True, fields.get("marked"))
    words = "\n".join(one for one in (fields.get("prompt"), fields.get("beside")) if isinstance(one, str)) or None
    return TextLogprobs(name, whole, len(prompt), place, tokens, logprobs, *flags, _translated(record), shown=words)


_NOTHING: Final[tuple[U32, F32]] = (np.zeros(0, np.uint32), np.zeros(0, np.float32))
_NOWHERE: Final[tuple[I64, U32, F32]] = (np.zeros(0, np.int64), *_NOTHING)


def _check_top(record: Record, top: Any, vocabulary: int) -> tuple[U32, F32]:
    rows = top if isinstance(top, list) and all(isinstance(row, list) and len(row) == 2 for row in top) else []
    if not rows or not all(is_logprob(p) for _, p in rows):
        raise record.error(
            "'top_logprobs' must be a list of [token id, log probability]", "natural logarithms, none above 0"
        )
    tokens = check_ids(record, "top_logprobs", [token for token, _ in rows], vocabulary)
    if len(set(tokens.tolist())) < len(tokens):
        raise record.error("'top_logprobs' names a token twice")
    logprobs = np.array([max(p, 10 * MIN_LOGPROB) for _, p in rows], np.float64)
    kept = logprobs >= MIN_LOGPROB
    return tokens[kept].astype(np.uint32), logprobs[kept].astype(np.float32)


def _translated(record: Record) -> Translated | None:
    said = record.fields.get("translated")
    if said is None:
        return None
    if (
        not isinstance(said, dict)
        or not is_text(said.get("tokenizer"))
        or not isinstance(said.get("cut"), bool)
        or not is_int(said.get("ambiguous"))
        or said["ambiguous"] < 0
    ):
        raise record.error(
            "'translated' must hold 'tokenizer', 'cut' and 'ambiguous', as the test of a model writes it"
        )
    return Translated(said["tokenizer"], said["cut"], said["ambiguous"])


def to_record(read: TextLogprobs) -> dict[str, Any]:
    """What `from_record` reads back, for JSON."""
    bounds = np.searchsorted(read.place, np.arange(read.start, len(read.ids) + 1))
    rows = [
        [[int(t), float(str(p))] for t, p in zip(read.tokens[low:high], read.logprobs[low:high], strict=True)] or None
        for low, high in pairwise(bounds)
    ]
    prompt, output = read.ids[: read.start].tolist(), read.ids[read.start :].tolist()
    more: dict[str, Any] = {} if read.marked is None else {"marked": read.marked}
    more |= {} if read.translated is None else {"translated": asdict(read.translated)}
    return {"id": read.id, "prompt_ids": prompt, "output_ids": output, "top_logprobs": rows} | more


def _limit(mark: Mark) -> int:
    """What token ids lie below."""
    return NO_TOKEN if mark.vocabulary_size is None else mark.vocabulary_size


def keep_top(readings: LogprobTable, k: int) -> LogprobTable:
    """The k largest log probabilities of each position only, as an API gives them."""
    return _kept(readings, _largest(readings.position, readings.logprobs, k), len(readings))


def most_named(texts: Sequence[TextLogprobs]) -> int:
    """The most tokens that are named at any one place of some texts; 0 without any."""
    counts = [np.unique(text.place, return_counts=True)[1] for text in texts if len(text.place)]
    return max((int(count.max()) for count in counts), default=0)


def keep_top_of_text(read: TextLogprobs, k: int) -> TextLogprobs:
    """The k largest log probabilities at each place only."""
    kept = _largest(read.place, read.logprobs, k)
    return replace(read, place=read.place[kept], tokens=read.tokens[kept], logprobs=read.logprobs[kept])


def _largest(group: I64, logprobs: F32, k: int) -> I64:
    """Indices, ascending, of the k largest log probabilities in each run of equal `group`, which ascends."""
    order = np.lexsort((-logprobs, group))
    rank = np.arange(len(order)) - np.searchsorted(group, group[order])
    return np.sort(order[rank < k])


def keep_first(readings: LogprobTable, positions: int) -> LogprobTable:
    """The first positions only."""
    return _kept(readings, np.flatnonzero(readings.position < positions), positions)


def _kept(readings: LogprobTable, entries: I64, positions: int) -> LogprobTable:
    return replace(
        readings,
        contexts=readings.contexts[:positions],
        position=readings.position[entries],
        tokens=readings.tokens[entries],
        logprobs=readings.logprobs[entries],
        record=readings.record[:positions],
    )
