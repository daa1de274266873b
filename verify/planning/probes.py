"""Probes: texts, or single positions, at which a suspect is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from verify.data.context_counts import ContextCounts
from verify.data.dedup import codes
from verify.data.outputs import Output
from verify.data.pairs import U32, scorable_batch

MAX_PROBES_PER_CONTEXT: Final = 10
"""How often a context is probed: the noise of one reading averages out, and few contexts would be left with more."""


def cut(texts: Iterable[Output], length: int) -> list[Output]:
    """Texts as probes of at most `length` tokens; a prompt stays with the first piece of its output."""
    probes = []
    for text in texts:
        for number, start in enumerate(range(0, len(text.output_ids), length)):
            prompt = text.prompt_ids if start == 0 else None
            piece = text.output_ids[start : start + length]
            probes.append(Output(f"{text.id}/{number}", prompt, piece, marked=text.marked))
    return probes


def targets(
    texts: Iterable[Output],
    counts: ContextCounts,
    number: int,
    exempt: Iterable[int] = (),
    *,
    each: int = MAX_PROBES_PER_CONTEXT,
    before: int = 64,
) -> list[Output]:
    """Probes of one position each, taken from texts where an often emitted context occurs; the most frequent first.

    A context is used `each` times at most. The prompt of a probe is the context and what comes before it, `before`
    tokens at most.
    """
    kept = list(texts)
    width = counts.contexts.shape[1]
    positions = scorable_batch(kept, width, exempt, unmarked_prompts=True)
    probes = []
    for i in most_frequent(positions.contexts, counts, number, each).tolist():
        text, place = kept[positions.record[i]], int(positions.place[i])
        ids = text.ids
        shown = ids[max(0, place - max(before, width)) : place]
        probes.append(Output(f"{text.id}@{place}", shown, ids[place : place + 1], marked=text.marked))
    return probes


def most_frequent(
    contexts: U32, counts: ContextCounts, number: int, each: int = MAX_PROBES_PER_CONTEXT
) -> npt.NDArray[np.int64]:
    """Which of some positions, uint32 [N, width], have the most often emitted contexts.

    int64 [number or fewer], the most frequent first; a context comes `each` times at most, one never emitted never.
    """
    emitted = counts.lookup(contexts)
    code = codes([*contexts.T], len(contexts))
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], code[order])
    turn = np.empty(len(order), np.int64)  # how many occurrences of the same context come before
    turn[order] = np.arange(len(order)) - starts
    allowed = np.flatnonzero((turn < each) & (emitted > 0))
    return allowed[np.argsort(-emitted[allowed], kind="stable")][:number]
