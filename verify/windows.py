"""How often each window was emitted: what the owner of a teacher knows, as weights for a test.

A student can have learned the mark only after windows that it saw, and learned it best after those it saw often.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from verify.outputs import Output
from verify.pairs import U32, WeightedPairs, find, scorable
from verify.tape import codes
from watermark import InputError, files

_META: Final = b"stillmark"

EACH: Final = 10
"""How often a window is probed: the noise of one reading averages out, and few windows would be left with more."""


@dataclass(frozen=True)
class Windows:
    """Distinct windows and how often a token was emitted after each.

    Attributes:
        contexts: uint32 [n, width], oldest token first.
        counts: int64 [n], positive.
        marked: whether any of the text carried a mark; None: not known.
    """

    contexts: U32
    counts: npt.NDArray[np.int64]
    marked: bool | None

    def lookup(self, contexts: U32) -> npt.NDArray[np.int64]:
        """The count of each of some windows, uint32 [N, width]; int64 [N], 0 for one that was never emitted."""
        if contexts.shape[1] != self.contexts.shape[1]:
            raise ValueError(f"windows of width {self.contexts.shape[1]}, contexts of width {contexts.shape[1]}")
        both = codes([*np.concatenate([self.contexts, contexts]).T], len(self.contexts) + len(contexts))
        place = find(both[: len(self.contexts)], both[len(self.contexts) :])
        return np.append(self.counts, 0)[place]  # -1, where there is none, is the 0 at the end

    def scale(self, pairs: WeightedPairs) -> WeightedPairs:
        """The pairs with each weight times the root of its window's count; never-emitted windows drop out.

        The root: a student's tilt grows with how often it saw the window, but its noise does not shrink to nothing.
        """
        factor = np.sqrt(self.lookup(pairs.contexts))
        kept = factor > 0
        return WeightedPairs(pairs.contexts[kept], pairs.tokens[kept], (pairs.weights * factor)[kept])


def count_windows(
    outputs: Iterable[Output], width: int, exempt: Iterable[int] = (), marked: bool | None = None
) -> Windows:
    """Count the windows of some outputs of the teacher, wherever a token that is not exempt came next.

    In text that may be `marked` a window counts once an output: a green loop would otherwise raise its own weight.
    """
    positions = scorable(outputs, width, exempt, prompts_keyless=True)
    contexts = positions.contexts
    if marked is not False:
        once = codes([positions.record, *contexts.T], len(contexts))
        contexts = contexts[np.sort(np.unique(once, return_index=True)[1])]
    code = codes([*contexts.T], len(contexts))
    _, first, counts = np.unique(code, return_index=True, return_counts=True)
    return Windows(contexts[first], counts.astype(np.int64), marked)


def save(windows: Windows, path: Path) -> None:
    """Write Parquet: `window` (list of token ids, oldest first) and `count`, the most frequent first.

    Raises:
        InputError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = np.argsort(-windows.counts, kind="stable")
    width = windows.contexts.shape[1]
    flat = pa.array(windows.contexts[order].ravel())
    offsets = pa.array(np.arange(len(order) + 1, dtype=np.int32) * width)
    table = pa.table({"window": pa.ListArray.from_arrays(offsets, flat), "count": windows.counts[order]})
    meta = json.dumps({"width": width, "marked": windows.marked}).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_META: meta}), sink)
    try:
        files.replace(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise InputError(path, 0, f"cannot write: {error.strerror}", "does the folder exist?") from None


def load(path: Path, width: int) -> Windows:
    """Read what `save` wrote.

    Raises:
        InputError: the file cannot be read, is no file of windows, or they are of another width.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        meta = json.loads((table.schema.metadata or {})[_META])
        held, marked = int(meta["width"]), meta["marked"]
        rows = table["window"].combine_chunks().cast(pa.list_(pa.uint32()))
        flat = rows.flatten().to_numpy(zero_copy_only=False)
        counts = table["count"].cast(pa.int64()).to_numpy()
        if len(flat) != held * len(counts) or (counts < 1).any():
            raise ValueError
    except OSError as error:
        raise InputError(path, 0, f"cannot read: {error.strerror or error}") from None
    except (pa.ArrowException, KeyError, TypeError, ValueError):
        raise InputError(path, 0, "no file of windows", "`stillmark windows` writes one") from None
    if held != width:
        raise InputError(path, 0, f"holds windows of width {held}, the mark's width is {width}")
    return Windows(flat.astype(np.uint32).reshape(len(counts), width), counts.astype(np.int64), marked)


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
    windows: Windows,
    number: int,
    exempt: Iterable[int] = (),
    *,
    each: int = EACH,
    before: int = 64,
) -> list[Output]:
    """Probes of one position each, taken from texts where an often emitted window occurs; the most frequent first.

    A window is used `each` times at most. The prompt of a probe is the window and what comes before it, `before`
    tokens at most.
    """
    kept = list(texts)
    width = windows.contexts.shape[1]
    positions = scorable(kept, width, exempt, prompts_keyless=True)
    probes = []
    for i in most_frequent(positions.contexts, windows, number, each).tolist():
        text, place = kept[positions.record[i]], int(positions.place[i])
        ids = text.ids
        shown = ids[max(0, place - max(before, width)) : place]
        probes.append(Output(f"{text.id}@{place}", shown, ids[place : place + 1], marked=text.marked))
    return probes


def most_frequent(contexts: U32, windows: Windows, number: int, each: int = EACH) -> npt.NDArray[np.int64]:
    """Which of some positions, uint32 [N, width], have the most often emitted windows.

    int64 [number or fewer], the most frequent first; a window comes `each` times at most, one never emitted not at all.
    """
    counts = windows.lookup(contexts)
    code = codes([*contexts.T], len(contexts))
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], code[order])
    turn = np.empty(len(order), np.int64)  # how many occurrences of the same window come before
    turn[order] = np.arange(len(order)) - starts
    allowed = np.flatnonzero((turn < each) & (counts > 0))
    return allowed[np.argsort(-counts[allowed], kind="stable")][:number]
