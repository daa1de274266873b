"""Token sequences to distinct (context, token) pairs. The three validity rules live here and nowhere else.

1. One coin a pair: a distinct pair counts once over the whole evidence, across records. (Pairs are distinct where the
   PRF reads them as distinct: `Reads`.)
2. No leaks from the context: a position is skipped if its context occurred, with a successor, in any prompt of
   the evidence; a model that copies what it was shown is innocent. (In the record's own prompt is not enough: two
   records whose prompts show each other's contexts tie the coins of the one to the choices in the other.)
   So is a position whose token, or whose whole context, was copied from the record's own prompt in another
   spelling (`verify.data.folding`).
3. Predictable selection: what is skipped depends on contexts and on which tokens are special, never on the
   key. Nothing in this module knows a key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from verify.data.dedup import codes, distinct_rows
from verify.data.outputs import Output
from watermark import StillmarkError

SEEN_CONTEXT: Final = "seen_context"
SHORT_CONTEXT: Final = "short_context"
SPECIAL_TOKEN: Final = "special_token"
PROMPT_CONTEXT: Final = "prompt_context"
PROMPT_TEXT: Final = "prompt_text"
REPEATED_PAIR: Final = "repeated_pair"

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]


def whole_pairs(contexts: U32, tokens: U32) -> U32:
    """The rows (context, token) of N pairs, uint32 [N, width + 1]."""
    return np.column_stack([contexts, tokens])


@dataclass(frozen=True)
class Reads:
    """How pairs share coins.

    Attributes:
        inputs: of contexts uint32 [N, width] and tokens [N], rows uint32 [N, any]: pairs with the same row have the
            same coins, and the coins of different rows are independent.
        shared: pairs of different contexts may have the same row, so that a context that was never shown may still
            have coins that were.
    """

    inputs: Callable[[U32, U32], U32] = whole_pairs
    shared: bool = False


PAIRS: Final = Reads()
"""The PRF reads the whole pair, as that of our own schemes does."""


@dataclass(frozen=True)
class Pairs:
    """Distinct pairs in the order in which they first occurred.

    Attributes:
        contexts: uint32 [n, width], oldest token first.
        tokens: uint32 [n].
        counts: int64 [n], how often each occurred at a position that may be scored.
        positions: output tokens looked at; n plus everything discarded.
        discarded: positions left out, by reason: `short_context` (fewer than width tokens before it),
            `special_token`, `prompt_context` and, if there are any, `prompt_text` (rule 2), `repeated_pair` (rule 1).
        prompts: records that had a prompt.
        records: records in all.
        unmarked: the prompts cannot depend on the key.
    """

    contexts: U32
    tokens: U32
    counts: npt.NDArray[np.int64]
    positions: int
    discarded: dict[str, int]
    prompts: int
    records: int
    unmarked: bool = False


@dataclass(frozen=True)
class Positions:
    """The positions of some outputs that may be scored, in order, repeated pairs among them.

    Attributes:
        contexts: uint32 [P, width], oldest token first.
        tokens: uint32 [P], what was chosen.
        record: int64 [P], the record each lies in, from 0.
        place: int64 [P], its index in the record's prompt + output.
        looked_at: output tokens in all; P plus everything discarded.
        discarded: positions left out, by reason.
        prompts: records that had a prompt.
        records: records in all.
        unmarked: the prompts cannot depend on the key.
        reads: what the PRF reads of a pair.
    """

    contexts: U32
    tokens: U32
    record: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    looked_at: int
    discarded: dict[str, int]
    prompts: int
    records: int
    unmarked: bool = False
    reads: Reads = PAIRS

    def head(self, number: int) -> Positions:
        """The first positions alone; what was counted stays as it was for all."""
        first = slice(number)
        return replace(
            self,
            contexts=self.contexts[first],
            tokens=self.tokens[first],
            record=self.record[first],
            place=self.place[first],
        )


def scorable_batch(
    outputs: Iterable[Output],
    width: int,
    exempt: Iterable[int] = (),
    *,
    unmarked_prompts: bool = False,
    copies: bool | None = None,
    reads: Reads = PAIRS,
) -> Positions:
    """The positions of some outputs that may be scored (rules 2 and 3).

    Args:
        outputs: token sequences; a context may reach back into the prompt.
        width: number of context tokens.
        exempt: token ids never scored (they do serve as context).
        unmarked_prompts: the prompts cannot depend on the key, so contexts that occur in them are kept.
        copies: leave out what was copied in another spelling; None: unless the prompts are unmarked.
        reads: what the PRF reads of a pair. Where contexts share coins, any prompt leaves nothing to score.

    Raises:
        StillmarkError: some are answers of a sequential run: how many there are depends on the coins, so that only a
            sequential test may judge them.
    """
    parts: list[npt.NDArray[np.int64]] = []
    copied: list[Bools | None] = []
    lengths: list[tuple[int, int]] = []  # of each record's prompt, and of prompt + output
    prompts = 0
    for output in outputs:
        if output.sequential:
            raise StillmarkError(
                f"output '{output.id}' was collected until the evidence sufficed",
                "answers of a sequential run have a test of their own, and no other holds for them",
            )
        prompt = output.start
        if output.prompt_ids is not None:
            prompts += 1
            parts.append(output.prompt_ids)
        parts.append(output.output_ids)
        copied.append(output.copied)
        lengths.append((prompt, prompt + len(output.output_ids)))

    ids = np.concatenate([*parts, np.zeros(0, np.int64)]).astype(np.uint32)
    prompt_length, length = np.array(lengths, np.int64).reshape(-1, 2).T
    record = np.repeat(np.arange(len(length)), length)
    place = np.arange(len(ids)) - np.repeat(np.cumsum(length) - length, length)  # within prompt + output
    in_prompt = place < prompt_length[record]

    scored = ~in_prompt
    looked_at = int(scored.sum())
    discarded: dict[str, int] = {}

    def discard(reason: str, bad: Bools) -> None:
        nonlocal scored
        discarded[reason] = int((scored & bad).sum())
        scored = scored & ~bad

    discard(SHORT_CONTEXT, place < width)
    discard(SPECIAL_TOKEN, np.isin(ids, np.fromiter(exempt, np.uint32)))
    if copies or (copies is None and not unmarked_prompts):
        here = np.zeros(len(ids), np.bool_)
        for one, (prompt, size), end in zip(copied, lengths, np.cumsum(length).tolist(), strict=True):
            if one is not None:
                here[end - size + prompt : end] = one
        if here.any():
            discard(PROMPT_TEXT, was_copied(here, width))
    where = np.flatnonzero(scored)
    contexts = contexts_before(ids, where, width)
    discarded[PROMPT_CONTEXT] = 0
    if not unmarked_prompts:
        before = contexts_before(ids, np.flatnonzero(in_prompt & (place >= width)), width)
        shown = np.full(len(contexts), len(before) > 0) if reads.shared else was_shown(contexts, before)
        discarded[PROMPT_CONTEXT] = int(shown.sum())
        where, contexts = where[~shown], contexts[~shown]
    return Positions(
        contexts=contexts,
        tokens=ids[where],
        record=record[where],
        place=place[where],
        looked_at=looked_at,
        discarded=discarded,
        prompts=prompts,
        records=len(lengths),
        unmarked=unmarked_prompts,
        reads=reads,
    )


def distinct(positions: Positions) -> Pairs:
    """One coin a pair (rule 1)."""
    first, counts = distinct_rows(positions.reads.inputs(positions.contexts, positions.tokens))
    repeated = len(positions.tokens) - len(first)
    return Pairs(
        contexts=positions.contexts[first],
        tokens=positions.tokens[first],
        counts=counts,
        positions=positions.looked_at,
        discarded=positions.discarded | {REPEATED_PAIR: repeated},
        prompts=positions.prompts,
        records=positions.records,
        unmarked=positions.unmarked,
    )


def extract(
    outputs: Iterable[Output],
    width: int,
    exempt: Iterable[int] = (),
    *,
    unmarked_prompts: bool = False,
    reads: Reads = PAIRS,
) -> Pairs:
    """The distinct pairs of some outputs; arguments as for `scorable_batch`."""
    return distinct(scorable_batch(outputs, width, exempt, unmarked_prompts=unmarked_prompts, reads=reads))


@dataclass(frozen=True)
class WeightedPairs:
    """Distinct pairs with a weight each: contexts uint32 [n, width], tokens uint32 [n], weights float64 [n]."""

    contexts: U32
    tokens: U32
    weights: npt.NDArray[np.float64]


def weigh(
    contexts: U32, tokens: U32, weights: npt.NDArray[np.float64], exempt: Iterable[int], reads: Reads = PAIRS
) -> WeightedPairs:
    """One coin a pair (rule 1) where pairs come with weights: those of a repeated pair add up.

    contexts [N, width], tokens [N] and weights [N] may repeat pairs; pairs of exempt tokens are dropped. Of pairs that
    share their coins the first stands for all. The weights must not depend on the key (rule 3).
    """
    kept = ~np.isin(tokens, np.fromiter(exempt, np.uint32)) & (weights != 0)
    contexts, tokens, weights = contexts[kept], tokens[kept], weights[kept]
    columns = [*reads.inputs(contexts, tokens).T]
    _, first, which = np.unique(codes(columns, len(tokens)), return_index=True, return_inverse=True)
    return WeightedPairs(
        contexts[first], tokens[first], np.bincount(which, weights, minlength=len(first)).astype(np.float64)
    )


def scorable_in_order(
    ids: npt.NDArray[np.int64],
    start: int,
    width: int,
    *,
    unmarked: bool,
    sampled: bool = False,
    seen: set[bytes] | None = None,
    once: bool = True,
    copied: Bools | None = None,
    shared: bool = False,
) -> tuple[npt.NDArray[np.int64], Counter[str]]:
    """The positions of one text, from `start` on, whose prediction may be scored (rule 2).

    A position needs `width` tokens before it (and one, for the model to have seen anything). Unless what was shown is
    `unmarked`, a position is left out if its context occurred before, with a successor, in anything that the suspect
    was shown: there it may repeat what the mark put into the text. Then each scored coin is fresh, given all that was
    shown and scored before it.

    Args:
        ids: int64 [length], the text, prompt and all.
        start: where the part begins whose tokens are predicted.
        width: number of context tokens.
        unmarked: what is shown cannot depend on the key.
        sampled: the suspect wrote what follows `start` itself, and was shown only the part before it.
        seen: the contexts that were shown before, over several texts; they are added to.
        once: score a context once only, so that a coin's weight never comes from two moments.
        copied: bool [length - start], what the suspect copied of its prompt in another spelling; None: nobody looked.
        shared: contexts share coins, so that after any context that was shown nothing is left to score.

    Returns:
        indices into `ids`, and how many were left out, by reason.
    """
    seen = set() if seen is None else seen
    kept: list[int] = []
    discarded: Counter[str] = Counter({SHORT_CONTEXT: 0, SEEN_CONTEXT: 0})
    left_out = np.zeros(len(ids), np.bool_)
    if copied is not None and not unmarked:
        left_out[start:] = copied
        left_out = was_copied(left_out, width)
    raw = ids.astype(np.uint32).tobytes()
    for i in range(len(ids)):
        if i < max(width, 1):
            discarded[SHORT_CONTEXT] += i >= start
        if i < width:
            continue
        context = raw[4 * (i - width) : 4 * i]
        if i >= max(start, 1):
            if not unmarked and (seen if shared else context in seen):
                discarded[SEEN_CONTEXT] += 1
            elif left_out[i]:
                discarded[PROMPT_TEXT] += 1
            else:
                kept.append(i)
        if i < start or not sampled or (once and i > 0):
            seen.add(context)
    return np.array(kept, np.int64), discarded


def contexts_before(ids: npt.NDArray[np.integer], where: npt.NDArray[np.int64], width: int) -> U32:
    """The `width` tokens before each of some places in `ids`: uint32 [len(where), width], oldest first."""
    contexts = np.empty((len(where), width), np.uint32)
    for column in range(width):
        contexts[:, column] = ids[where - (width - column)]
    return contexts


def was_copied(copied: Bools, width: int) -> Bools:
    """Rule 2 in other spellings: at which places the token, or all of its context, was copied: bool [length]."""
    before = np.full(len(copied), width > 0)
    for back in range(1, min(width, len(copied)) + 1):
        before[back:] &= copied[:-back]
        before[:back] = False
    found: Bools = copied | before
    return found


def was_shown(contexts: U32, shown: U32) -> Bools:
    """Rule 2: which of some contexts precede a token of a prompt, its own or another's: bool [N].

    contexts: uint32 [N, k]. shown: uint32 [M, k], the contexts of the prompts' own tokens. With a record's number in
    front of either, each record is held against its own prompt alone.
    """
    if not len(shown):
        return np.zeros(len(contexts), np.bool_)
    code = codes([*np.concatenate([contexts, shown]).T], len(contexts) + len(shown))
    return np.isin(code[: len(contexts)], code[len(contexts) :])


class SeenPairs:
    """Which pairs have been counted (rule 1), where evidence comes record by record."""

    def __init__(self, reads: Reads = PAIRS) -> None:
        self._reads = reads
        self._seen: set[bytes] = set()

    def fresh(self, pairs: WeightedPairs) -> WeightedPairs:
        """Those of some distinct pairs that were never counted before; they are now."""
        rows = np.ascontiguousarray(self._reads.inputs(pairs.contexts, pairs.tokens), np.uint32)
        kept = []
        for i, row in enumerate(rows):
            key = row.tobytes()
            if key not in self._seen:
                self._seen.add(key)
                kept.append(i)
        return WeightedPairs(pairs.contexts[kept], pairs.tokens[kept], pairs.weights[kept])
