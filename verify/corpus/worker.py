"""A corpus piece by piece: what a worker does to one work item, and to one partition of all pairs.

The rules of `verify.data.pairs` speak of the whole evidence, which does not fit in memory. So each work item (some
records) is read once and its pairs and prompt contexts are written down, sorted by a hash of the context; then each
partition (some contexts, out of all items) is judged by itself. A context has all its pairs and all prompts that showed
it in one partition, so that both rule 1 and rule 2 can be applied within it, and the counts of partitions add up.
(Without rule 2 the pair is hashed, which spreads more evenly: at width 1 some contexts are much more frequent than
others.)

Everything passes through files in one folder, and not through a scheduler's memory. A step reads files, and writes one
file or folder of a fixed name in one rename; where that is there already it does nothing. A step that was killed may
therefore be run again, by any worker and any number of times: each record counts once. (After a power cut start afresh:
the files are not synced to disk.)

    run.json           the plan: settings, input files, work items, number of partitions
    items/000017/      rows.npy    uint32 [N, width + 3]: source, context, token, how often; sorted by partition
                       shown.npy   uint32 [M, width + 1]: source, context of a prompt; sorted by partition
                       ends.npy    int64 [2, partitions]: where each partition ends, in rows and in shown
                       facts.json  the sources' names, and what was read
                       documents.parquet    each record with its own n and green
    parts/000003.json  int64 [1 + sources, 4]: n, green, prompt_context, repeated_pair; of all, and of each source

Each JSON file carries a seal by the mark's key, and facts.json the digests of the files beside it: what was changed in
the folder is refused, and not believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from verify.corpus.plan import CorpusPlan, Job, check_seal, stamp, with_seal
from verify.data.dedup import distinct_rows, partition
from verify.data.outputs import Output, to_outputs
from verify.data.pairs import PROMPT_CONTEXT, REPEATED_PAIR, Positions, scorable_batch, was_shown
from verify.data.shapes import Answers, Tally, added, tally
from verify.data.tables import Part
from verify.radioactivity.detail import tokenizer_if_there
from verify.radioactivity.prompts import prompts_test, with_copies
from watermark import InputError, Mark, MarkError
from watermark.io import files
from watermark.io.fields import JsonError, load_object, not_wanted
from watermark.io.records import Record, RecordError
from watermark.tokenizers import AnyTokenizer

ARRAYS: Final = ("rows.npy", "shown.npy", "ends.npy", "documents.parquet")
"""Files of a work item whose digests stand in its facts."""

TALLY: Final = ("n", "green", PROMPT_CONTEXT, REPEATED_PAIR)

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


class Worker:
    """Does the steps of one job.

    Raises:
        MarkError: the mark cannot be loaded, or is not the plan's.
    """

    def __init__(self, job: Job) -> None:
        self.folder = job.folder
        self.mark = Mark.load(job.mark_path, allow_readable=job.allow_readable)
        self.key = self.mark.seal_key
        plan = CorpusPlan.load(job.folder, self.key)
        assert plan is not None
        self.plan, self.settings = plan, plan.settings
        if self.mark.commitment != self.settings.commitment:
            raise MarkError(f"{job.mark_path}: is not the mark that this run began with", "was it replaced?")
        self.encode = job.encoder(self.mark, Path(self.settings.tokenizer) if self.settings.tokenizer else None)
        self.stamps = {path: (path, size, changed) for path, size, changed, _ in plan.files}

    def map_item(self, number: int) -> None:
        """Read a work item and write down its documents, pairs and prompt contexts.

        Raises:
            InputError: as `verify.data.outputs.read_outputs`; or a file has changed, or a record's source is no string.
            TokenizerError: a text must be tokenized, and cannot be.
        """
        target = item_path(self.folder, number)
        if target.is_dir():
            return
        read = self._read(self.plan.items[number])
        mark, unmarked = self.mark, self.settings.unmarked
        tested = None
        if any(output.start or output.prompt for output in read.outputs):
            tested = prompts_test(mark, read.outputs, self.tokenizer)
            if not unmarked and self.tokenizer is not None:
                read.outputs[:] = with_copies(read.outputs, self.tokenizer, None)
        # what rule 2 says of contexts comes later
        held = scorable_batch(read.outputs, mark.width, mark.exempt, unmarked_prompts=True, copies=not unmarked)
        prompts = [] if unmarked else read.outputs
        shown = scorable_batch(map(_prompt, prompts), mark.width, unmarked_prompts=True)
        n, green = _each_alone(mark, held, shown)
        rows, shown_rows = _label(read.sources, held), _label(read.sources, shown)[:, :-1]
        first, counts = distinct_rows(rows)
        rows = np.column_stack([rows[first], counts.astype(np.uint32)])
        shown_rows = shown_rows[distinct_rows(shown_rows)[0]]
        parts = self.plan.partitions
        rows, ends = _sort(rows, rows[:, 1:-1] if unmarked or not mark.width else rows[:, 1:-2], self.plan)
        if mark.width:
            shown_rows, shown_ends = _sort(shown_rows, shown_rows[:, 1:], self.plan)
        else:  # the one empty context, of every pair
            shown_ends = [len(shown_rows) * (part + 1) for part in range(parts)]
            shown_rows = np.tile(shown_rows, (parts, 1))
        tokens = np.array([len(output.output_ids) for output in read.outputs], np.int64)
        facts = {
            "names": read.names,
            "records": np.bincount(read.sources, minlength=len(read.names)).tolist(),
            "tokens": _sums(read.sources, tokens, len(read.names)).tolist(),
            "prompts": held.prompts,
            "prompts_test": None if tested is None else vars(tested),
            "discarded": held.discarded,
            "bad": read.bad,
            "first_bad": read.first_bad,
            "files": read.files,
            "shapes": read.shapes,
            "beside": sorted(read.beside),
        }
        try:
            with files.writing(self.folder), files.new_folder(target) as scratch:
                np.save(scratch / "rows.npy", rows)
                np.save(scratch / "shown.npy", shown_rows)
                np.save(scratch / "ends.npy", np.array([ends, shown_ends], np.int64))
                _write_documents(scratch / "documents.parquet", read, tokens, n, green)
                facts["digests"] = {name: files.sha256(scratch / name) for name in ARRAYS}
                (scratch / "facts.json").write_bytes(with_seal(facts, self.key, f"items/{target.name}"))
        except InputError:
            if not target.is_dir():  # else another worker was first
                raise

    @cached_property
    def tokenizer(self) -> AnyTokenizer | None:
        """The mark's; None where it is not at hand."""
        return tokenizer_if_there(self.mark, self.settings.tokenizer)

    def reduce_part(self, part: int) -> None:
        """Judge a partition, once every item is there: rule 2 and rule 1, for the corpus and for each source."""
        target = part_path(self.folder, part)
        if target.exists():
            return
        names = self._sources[0]
        rows = self._gather("rows", 0, part, self.mark.width + 3)
        shown = self._gather("shown", 1, part, self.mark.width + 1)
        source, contexts, counts = rows[:, 0], rows[:, 1:-2], rows[:, -1]
        here, anywhere = was_shown(rows[:, :-2], shown), was_shown(contexts, shown[:, 1:])
        own = np.flatnonzero(~here)
        first = own[distinct_rows(rows[own, :-1])[0]]
        hits = self.mark.hits(contexts[first], rows[first, -2])
        kept = np.flatnonzero(~anywhere[first])
        of_all = kept[distinct_rows(rows[first[kept], 1:-1])[0]]

        tally = np.zeros((1 + len(names), len(TALLY)), np.int64)
        hidden, scored = int(counts[anywhere].sum(dtype=np.int64)), int(counts[~anywhere].sum(dtype=np.int64))
        tally[0] = len(of_all), hits[of_all].sum(), hidden, scored - len(of_all)
        tally[1:, 0] = np.bincount(source[first], minlength=len(names))
        tally[1:, 1] = _sums(source[first], hits, len(names))
        tally[1:, 2] = _sums(source[here], counts[here], len(names))
        tally[1:, 3] = _sums(source[own], counts[own], len(names)) - tally[1:, 0]
        with files.writing(self.folder):
            target.parent.mkdir(exist_ok=True)
            files.replace(target, with_seal({"tally": tally.tolist()}, self.key, f"parts/{target.name}"))

    @cached_property
    def _facts(self) -> list[dict[str, Any]]:
        found = list(read_facts(self.folder, len(self.plan.items), self.key))
        for number, facts in enumerate(found):
            for name in ARRAYS:
                path = item_path(self.folder, number) / name
                if files.sha256(path) != facts["digests"][name]:
                    raise InputError(
                        path, 0, "was changed since this run wrote it", "remove the folder, and start anew"
                    )
        return found

    @cached_property
    def _sources(self) -> tuple[list[str], list[U32]]:
        """The names of all sources, and the number that each item's sources have among them."""
        names = source_names(self._facts)
        number = {name: i for i, name in enumerate(names)}
        return names, [np.array([number[name] for name in facts["names"]], np.uint32) for facts in self._facts]

    def _gather(self, name: str, which: int, part: int, columns: int) -> U32:
        """What all items have for a partition: uint32 [N, columns], the source renumbered."""
        pieces = [np.zeros((0, columns), np.uint32)]
        for item, numbers in enumerate(self._sources[1]):
            folder = item_path(self.folder, item)
            ends = np.load(folder / "ends.npy", mmap_mode="r")[which]
            start, stop = int(ends[part - 1]) if part else 0, int(ends[part])
            if stop > start:
                piece = np.array(np.load(folder / f"{name}.npy", mmap_mode="r")[start:stop])
                piece[:, 0] = numbers[piece[:, 0]]
                pieces.append(piece)
        return np.concatenate(pieces)

    def _read(self, parts: Iterable[Part]) -> _Item:
        item = _Item([], [], {}, [], Counter())
        stream = self._stream(parts, item)
        settings, size = self.settings, self.mark.vocabulary_size
        for found in to_outputs(stream, self.encode, size, not settings.unmarked):
            if isinstance(found, RecordError):
                if not settings.skip_bad:
                    raise found
                item.bad, item.first_bad = item.bad + 1, item.first_bad or str(found)
                continue
            record, output = found
            if output.sequential:
                message, hint = "was collected until the evidence sufficed", "test its file with `stillmark test text`"
                raise InputError(record.path, record.line, message, hint)
            item.records.append(record)
            item.outputs.append(output)
            name = record.fields.get(settings.source_column) or ""
            item.source.append(item.number.setdefault(name, len(item.number)))
        return item

    def _stream(self, parts: Iterable[Part], item: _Item) -> Iterator[Record | RecordError]:
        column = self.settings.source_column
        for part in parts:
            if stamp(part.path) != self.stamps[str(part.path)]:
                raise InputError(part.path, 0, "has changed since this run began", "start anew, in another folder")
            answers = Answers(part, self.settings.columns, (column,))
            for record in answers:
                item.files[str(part.path)] += 1
                if isinstance(record, Record) and not isinstance(record.fields.get(column), str | None):
                    yield record.error(not_wanted(column, "a string, the name of a source", record.fields[column]))
                else:
                    yield record
            item.shapes = added([item.shapes, tally([answers])])
            item.beside |= answers.beside


@dataclass
class _Item:
    """The records of a work item; source numbers into `names`."""

    records: list[Record]
    outputs: list[Output]
    number: dict[str, int]
    source: list[int]
    files: Counter[str]
    bad: int = 0
    first_bad: str | None = None
    shapes: Tally = field(default_factory=dict)
    beside: set[str] = field(default_factory=set)

    @property
    def names(self) -> list[str]:
        return list(self.number)

    @property
    def sources(self) -> I64:
        return np.array(self.source, np.int64)


def item_path(folder: Path, number: int) -> Path:
    """Where a work item's results lie."""
    return folder / "items" / f"{number:06}"


def part_path(folder: Path, part: int) -> Path:
    """Where a partition's counts lie."""
    return folder / "parts" / f"{part:06}.json"


def read_tally(folder: Path, part: int, key: bytes) -> I64:
    """A partition's counts. Raises InputError."""
    path = part_path(folder, part)
    return np.array(_read_sealed(path, key, f"parts/{path.name}")["tally"], np.int64)


def read_facts(folder: Path, items: int, key: bytes) -> Iterator[dict[str, Any]]:
    """What was read, by work item. Raises InputError."""
    for number in range(items):
        path = item_path(folder, number)
        yield _read_sealed(path / "facts.json", key, f"items/{path.name}")


def _read_sealed(path: Path, key: bytes, name: str) -> dict[str, Any]:
    try:
        return check_seal(load_object(path), key, path, name)
    except (OSError, JsonError) as error:
        raise InputError(path, 0, f"cannot read: {error}", "remove the folder, and start anew") from None


def source_names(facts: Iterable[dict[str, Any]]) -> list[str]:
    """The names of all sources, in order; the nameless one is ""."""
    return sorted({name for one in facts for name in one["names"]})


def _prompt(output: Output) -> Output:
    """The prompt as if it were the output: what would be scored of it are the contexts that it shows (rule 2)."""
    return Output(output.id, None, np.zeros(0, np.int64) if output.prompt_ids is None else output.prompt_ids)


def _each_alone(mark: Mark, held: Positions, shown: Positions) -> tuple[I64, I64]:
    """n and green coins of each record as if it were all the evidence: int64 [records] twice."""
    rows = np.column_stack([held.record.astype(np.uint32), held.contexts, held.tokens])
    rows = rows[~was_shown(rows[:, :-1], np.column_stack([shown.record.astype(np.uint32), shown.contexts]))]
    pairs = rows[distinct_rows(rows)[0]]
    hits = mark.hits(pairs[:, 1:-1], pairs[:, -1])
    return (
        np.bincount(pairs[:, 0], minlength=held.records).astype(np.int64),
        _sums(pairs[:, 0], hits, held.records),
    )


def _label(sources: I64, positions: Positions) -> U32:
    """Pairs with their source in front: uint32 [P, width + 2]."""
    return np.column_stack([sources[positions.record].astype(np.uint32), positions.contexts, positions.tokens])


def _sort(rows: U32, keys: U32, plan: CorpusPlan) -> tuple[U32, list[int]]:
    """Rows by the partition of their keys, and where each partition ends."""
    parts = plan.partitions
    part = partition(keys, parts, plan.seed).astype(np.uint16)
    return rows[np.argsort(part, kind="stable")], np.cumsum(np.bincount(part, minlength=parts)).tolist()


def _sums(groups: npt.NDArray[np.integer], values: npt.NDArray[np.integer], number: int) -> I64:
    """The sum of the values in each of some groups: int64 [number], exact below 2**53."""
    return np.bincount(groups, values, minlength=number).astype(np.int64)


def _write_documents(path: Path, read: _Item, tokens: I64, n: I64, green: I64) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = read.names
    columns = {
        "file": pa.array([str(record.path) for record in read.records], pa.string()),
        "line": pa.array([record.line for record in read.records], pa.int64()),
        "id": pa.array([output.id for output in read.outputs], pa.string()),
        "source": pa.array([names[number] for number in read.source], pa.string()),
        "tokens": tokens,
        "n": n,
        "green": green,
    }
    pq.write_table(pa.table(columns), path, compression="zstd")
