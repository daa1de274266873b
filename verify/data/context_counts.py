"""How often each context was emitted: what the owner of a teacher knows, as weights for a test.

A student can have learned the mark only after contexts that it saw, and learned it best after those it saw often.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from verify.data.columns import Columns
from verify.data.dedup import codes, find
from verify.data.footer import read_footer
from verify.data.outputs import Output, Outputs, read_outputs
from verify.data.pairs import U32, WeightedPairs, scorable_batch
from verify.progress import Stages, on, silent
from verify.results import plural
from watermark import InputError, Mark
from watermark.io import files
from watermark.io.fields import Types, either, is_flag, is_int, is_null, load_object, wrong_field
from watermark.mark import as_mark

_META: Final = b"stillmark"


@dataclass(frozen=True)
class ContextCounts:
    """Distinct contexts and how often a token was emitted after each.

    Attributes:
        contexts: uint32 [n, width], oldest token first.
        counts: int64 [n], positive.
        marked: whether any of the text carried a mark; None: not known.
    """

    contexts: U32
    counts: npt.NDArray[np.int64]
    marked: bool | None

    def lookup(self, contexts: U32) -> npt.NDArray[np.int64]:
        """The count of each of some contexts, uint32 [N, width]; int64 [N], 0 for one that was never emitted."""
        if contexts.shape[1] != self.contexts.shape[1]:
            raise ValueError(f"contexts of width {self.contexts.shape[1]}, contexts of width {contexts.shape[1]}")
        both = codes([*np.concatenate([self.contexts, contexts]).T], len(self.contexts) + len(contexts))
        place = find(both[: len(self.contexts)], both[len(self.contexts) :])
        return np.append(self.counts, 0)[place]  # -1, where there is none, is the 0 at the end

    def scale(self, pairs: WeightedPairs) -> WeightedPairs:
        """The pairs with each weight times the root of its context's count; never-emitted contexts drop out.

        The root: a student's tilt grows with how often it saw the context, but its noise does not shrink to nothing.
        """
        factor = np.sqrt(self.lookup(pairs.contexts))
        kept = factor > 0
        return WeightedPairs(pairs.contexts[kept], pairs.tokens[kept], (pairs.weights * factor)[kept])

    def save(self, path: str | Path) -> None:
        """Write a Parquet file for the argument `context_counts` of other functions. Raises InputError."""
        save(self, Path(path))

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {"contexts": len(self.counts), "tokens": int(self.counts.sum()), "marked": self.marked}

    def __str__(self) -> str:
        """What the command prints."""
        carries = {True: "marked", False: "unmarked", None: "perhaps marked"}[self.marked]
        return f"{plural(len(self.counts), 'context')} of {plural(int(self.counts.sum()), f'{carries} token')}"


def count_contexts(
    outputs: str | Path | Sequence[str | Path] | Outputs,
    mark: Mark | str | Path,
    *,
    tokenizer: str | Path | None = None,
    columns: Columns | None = None,
    progress: Stages = silent,
) -> ContextCounts:
    """Count the contexts in outputs of the teacher, for the argument `context_counts` of other functions.

    Outputs that were generated without the mark leave the tests that use the counts exact. Counts of marked outputs
    depend on the key, a little: each test that uses them says so.

    Args:
        outputs: files as for `verify.read_outputs`, or what that returned.
        mark: the mark, or its file; it says how long a context is.
        tokenizer: folder of the mark's tokenizer, if not where the mark says.
        columns: where the fields are in records of no known shape, as for `verify.read_outputs`.
        progress: opened around the reading.

    Raises:
        StillmarkError: a file or the mark cannot be used.
    """
    mark = as_mark(mark)
    if not isinstance(outputs, Outputs):
        with progress(on("reading", outputs), "records") as update:
            outputs = read_outputs(outputs, mark, tokenizer=tokenizer, columns=columns, progress=update)
    return counts_of(outputs, mark.width, mark.exempt, _marked(outputs))


def _marked(outputs: Iterable[Output]) -> bool | None:
    """Whether any of several outputs was marked; None: some do not say, and of the others none was."""
    kinds = {output.marked for output in outputs}
    return True if True in kinds else None if None in kinds else False


def counts_of(
    outputs: Iterable[Output], width: int, exempt: Iterable[int] = (), marked: bool | None = None
) -> ContextCounts:
    """Count the contexts of some outputs of the teacher, wherever a token that is not exempt came next.

    In text that may be `marked` a context counts once an output: a green loop would otherwise raise its own weight.
    """
    positions = scorable_batch(outputs, width, exempt, unmarked_prompts=True)
    contexts = positions.contexts
    if marked is not False:
        once = codes([positions.record, *contexts.T], len(contexts))
        contexts = contexts[np.sort(np.unique(once, return_index=True)[1])]
    code = codes([*contexts.T], len(contexts))
    _, first, counts = np.unique(code, return_index=True, return_counts=True)
    return ContextCounts(contexts[first], counts.astype(np.int64), marked)


def save(counted: ContextCounts, path: Path) -> None:
    """Write Parquet: `context` (list of token ids, oldest first) and `count`, the most frequent first.

    Raises:
        InputError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = np.argsort(-counted.counts, kind="stable")
    width = counted.contexts.shape[1]
    flat = pa.array(counted.contexts[order].ravel())
    offsets = pa.array(np.arange(len(order) + 1, dtype=np.int32) * width)
    table = pa.table({"context": pa.ListArray.from_arrays(offsets, flat), "count": counted.counts[order]})
    meta = json.dumps({"width": width, "marked": counted.marked}).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_META: meta}), sink)
    with files.writing(path):
        files.replace(path, sink.getvalue().to_pybytes())


def load(path: Path, width: int) -> ContextCounts:
    """Read what `save` wrote.

    Raises:
        InputError: the file cannot be read, is no file of context counts, or they are of another width.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        read_footer(path)
        table = pq.read_table(path)
        meta = load_object((table.schema.metadata or {})[_META])
        held, marked = meta["width"], meta["marked"]
        lists, counts = table["context"].combine_chunks(), table["count"].combine_chunks()
        whole = wrong_field(meta, _TYPES) is None and lists.null_count == counts.null_count == 0
        if not whole or not pa.types.is_integer(lists.type.value_type) or not pa.types.is_integer(counts.type):
            raise ValueError
        flat = lists.flatten().cast(pa.uint32())
        number = counts.cast(pa.int64()).to_numpy()
        if flat.null_count or (lists.value_lengths().to_numpy() != held).any() or (number < 1).any():
            raise ValueError
    except OSError as error:
        raise InputError(path, 0, f"cannot read: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(path, 0, f"no file of context counts: {error.message}", error.hint) from None
    except (pa.ArrowException, AttributeError, KeyError, TypeError, ValueError):
        raise InputError(path, 0, "no file of context counts", "`stillmark count-contexts` writes one") from None
    if held != width:
        raise InputError(path, 0, f"holds contexts of width {held}, the mark's width is {width}")
    contexts = flat.to_numpy().reshape(len(number), width)
    return ContextCounts(contexts, number, marked)


_TYPES: Final[Types] = {
    "width": (is_int, "an integer"),
    "marked": (either(is_null, is_flag), "true, false or null"),
}
