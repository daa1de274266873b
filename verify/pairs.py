"""Token sequences to distinct (context, token) pairs. The three validity rules live here and nowhere else.

1. One coin a pair: a distinct pair counts once over the whole evidence, across records.
2. No leaks from the context: a position is skipped if its window already occurred, with a successor, in the
   record's own prompt; a model that copies what it was shown is innocent.
3. Predictable selection: what is skipped depends on windows and on which tokens are special, never on the
   key. Nothing in this module knows a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from verify.outputs import Output

SHORT_CONTEXT: Final = "short_context"
SPECIAL_TOKEN: Final = "special_token"
PROMPT_WINDOW: Final = "prompt_window"
REPEATED_PAIR: Final = "repeated_pair"

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """Distinct pairs in the order in which they first occurred.

    Attributes:
        contexts: uint32 [n, width], oldest token first.
        tokens: uint32 [n].
        counts: int64 [n], how often each occurred at a position that may be scored.
        positions: output tokens looked at; n plus everything discarded.
        discarded: positions left out, by reason: `short_context` (fewer than width tokens before it),
            `special_token`, `prompt_window` (rule 2), `repeated_pair` (rule 1).
        prompts: records that had a prompt.
        records: records in all.
    """

    contexts: U32
    tokens: U32
    counts: npt.NDArray[np.int64]
    positions: int
    discarded: dict[str, int]
    prompts: int
    records: int


def extract(
    outputs: Iterable[Output], width: int, exempt: Iterable[int] = (), *, prompts_keyless: bool = False
) -> Pairs:
    """The distinct pairs of some outputs.

    Args:
        outputs: token sequences; a window may reach back into the prompt.
        width: number of context tokens.
        exempt: token ids never scored (they do serve as context).
        prompts_keyless: the prompts cannot depend on the key, so windows that occur in them are kept.
    """
    parts: list[npt.NDArray[np.int64]] = []
    lengths: list[tuple[int, int]] = []  # of each record's prompt, and of prompt + output
    prompts = 0
    for output in outputs:
        prompt = 0
        if output.prompt_ids is not None:
            prompts += 1
            prompt = len(output.prompt_ids)
            parts.append(output.prompt_ids)
        parts.append(output.output_ids)
        lengths.append((prompt, prompt + len(output.output_ids)))

    ids = np.concatenate([*parts, np.zeros(0, np.int64)]).astype(np.uint32)
    prompt_length, length = np.array(lengths, np.int64).reshape(-1, 2).T
    record = np.repeat(np.arange(len(length)), length)
    place = np.arange(len(ids)) - np.repeat(np.cumsum(length) - length, length)  # within prompt + output
    in_prompt = place < prompt_length[record]
    windows = [np.roll(ids, shift) for shift in range(width, 0, -1)]  # of the token at each position

    scored = ~in_prompt
    positions = int(scored.sum())
    discarded: dict[str, int] = {}

    def discard(reason: str, bad: Bools) -> None:
        nonlocal scored
        discarded[reason] = int((scored & bad).sum())
        scored = scored & ~bad

    discard(SHORT_CONTEXT, place < width)
    discard(SPECIAL_TOKEN, np.isin(ids, np.fromiter(exempt, np.uint32)))
    if prompts_keyless:
        discarded[PROMPT_WINDOW] = 0
    else:
        discard(PROMPT_WINDOW, _seen_in_prompt(record, windows, scored, in_prompt & (place >= width)))

    columns = [column[scored] for column in (*windows, ids)]
    _, first, counts = np.unique(_codes(columns), return_index=True, return_counts=True)
    order = np.argsort(first)
    columns = [column[first[order]] for column in columns]
    discarded[REPEATED_PAIR] = int(scored.sum()) - len(first)
    return Pairs(
        contexts=np.stack(columns[:-1], axis=1) if width else np.zeros((len(first), 0), np.uint32),
        tokens=columns[-1],
        counts=counts[order].astype(np.int64),
        positions=positions,
        discarded=discarded,
        prompts=prompts,
        records=len(lengths),
    )


def _seen_in_prompt(record: npt.NDArray[np.int64], windows: list[U32], output: Bools, prompt: Bools) -> Bools:
    """Whether each output position's window also precedes a token of its own record's prompt."""
    seen = np.zeros(len(record), np.bool_)
    if prompt.any():
        keys: list[npt.NDArray[np.integer]] = [record, *windows]
        codes = _codes([column[output | prompt] for column in keys])
        where = np.flatnonzero(output | prompt)
        seen[where] = np.isin(codes, codes[prompt[where]])
    return seen & output


def _codes(columns: Sequence[npt.NDArray[np.integer]]) -> U64:
    """One number a row, uint64 [N]: equal where and only where the rows are equal. No hash, no collision."""
    code = np.zeros(len(columns[0]), np.uint64)
    if not len(code):
        return code
    size = 1
    for column in columns:
        radix = int(column.max()) + 1
        if size * radix > 1 << 64:
            code = np.unique(code, return_inverse=True)[1].astype(np.uint64)
            size = int(code.max()) + 1
        code = code * np.uint64(radix) + column.astype(np.uint64)
        size *= radix
    return code
