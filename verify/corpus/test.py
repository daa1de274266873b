"""Test more text than fits in memory: a verdict on all of it, on each source, and a q-value for each document.

Each answer is that of `stillmark test text`, to the bit: the corpus' is what it says of all files together, a
source's what it says of that source's records alone, with pairs and prompts of their own, a document's what it says
of that one record. How the work is cut up, who does it, and how often it is interrupted make no difference:
`verify.corpus.worker` says why. Memory grows with a work item, a partition, the longest record, and with the number of
documents (some 100 bytes each) and sources; not with the text.

The documents' q-values are Benjamini and Hochberg's. Documents share pairs, and so coins; but each p-value falls as
the number of green coins among its own rises, and where coins are independent, such a sum of 0s and 1s is log-concave,
so given a larger sum every increasing function of all coins is larger in expectation (Efron 1965). That is the positive
dependence (PRDS) under which their step-up holds the false discovery rate (Benjamini and Yekutieli 2001). It takes
texts that are fixed beforehand, marked ones among them as coins of a higher rate; of prompts that show one document's
coins to another it says nothing, although each p-value by itself stays exact.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from verify.calls import noted
from verify.corpus.plan import CorpusPlan, Job, Settings, check_seal, lock, plan_of, with_seal
from verify.corpus.scheduler import MAP, REDUCE, cluster, run_steps
from verify.corpus.worker import TALLY, item_path, part_path, read_facts, read_tally, source_names
from verify.data.beside import note_on_beside
from verify.data.columns import Columns, check_columns
from verify.data.outputs import none_good
from verify.data.shapes import added, described
from verify.data.sources import files_of, no_records
from verify.display import Paragraph, Part, Table
from verify.progress import Stages, on, silent
from verify.radioactivity.detail import tokenizer_if_there
from verify.radioactivity.logprobs import Floats
from verify.radioactivity.prompts import NOT_COMPARED, PromptsTest, check_unmarked, of_parts
from verify.radioactivity.result import PairsResult
from verify.radioactivity.tails import BINOMIAL
from verify.radioactivity.text import method_words, rate_statement, text_warnings
from verify.results import CARRIES, INSUFFICIENT, NO_VERDICT, POWER, left_out_bad, plural
from verify.stats import binomial, multiple
from watermark import InputError, Mark, MarkError
from watermark.io import files
from watermark.io.fields import JsonError, load_object
from watermark.progress import Progress
from watermark.tokenizers import Encode, encoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN: Final = 20
"""Sources that a result shows as text."""


@dataclass(frozen=True)
class Source:
    """What one source wrote, as `stillmark test text` sees it. name: "" for records that name none; green: coins."""

    name: str
    records: int
    tokens: int
    n: int
    green: int


@dataclass(frozen=True)
class Work:
    """How much there was to do, and how much of it an earlier run had done."""

    items: int
    items_resumed: int
    partitions: int
    partitions_resumed: int


@dataclass(frozen=True, kw_only=True)
class CorpusResult(PairsResult):
    """The exact binomial test on a corpus and on each of its sources.

    Attributes:
        tokens: output tokens looked at; n plus everything discarded.
        records: records in all.
        prompts: records that had a prompt.
        unmarked: the prompts cannot depend on the key.
        bad: malformed records that were left out.
        first_bad: what was wrong with the first.
        sources: by name.
        source_log10_pvalues: log10 p of each source by itself, float64 [sources].
        documents: the Parquet file with each document's p- and q-value.
        discoveries: documents whose q-value is at most alpha.
        work: what was done, and what was there already.
    """

    tokens: int
    records: int
    prompts: int
    unmarked: bool
    bad: int
    first_bad: str | None
    sources: tuple[Source, ...] = field(repr=False)
    source_log10_pvalues: Floats = field(repr=False)
    documents: Path
    discoveries: int
    work: Work

    @property
    def source_log10_adjusted(self) -> Floats:
        """The same after Holm, for all sources at once: what a source's verdict rests on, float64 [sources]."""
        return multiple.holm(self.source_log10_pvalues)

    @property
    def evidence(self) -> str:
        return f"{plural(self.n, 'pair')} of {plural(self.tokens, 'token')}"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "tokens": self.tokens,
            "records": self.records,
            "unmarked_prompts": self.unmarked,
            "bad_records": self.bad,
            "sources": self.source_rows(),
            "documents": {
                "path": str(self.documents),
                "number": self.records,
                "discoveries": self.discoveries,
                "level": self.alpha,
            },
            "work": vars(self.work),
        }

    def rows(self) -> dict[str, str]:
        rows = super().rows()
        found = {
            "p-value": rows["p-value"],
            **self._rows_of_pairs(self.tokens, self.records),
            "test": self.test,
            "documents": f"{self.discoveries:,} of {self.records:,} with q at most {self.alpha:g}",
            "written to": str(self.documents),
        }
        if self.work.items_resumed or self.work.partitions_resumed:
            work = self.work
            resumed = f"{work.items_resumed} of {work.items} work items"
            found["resumed"] = f"{resumed}, {work.partitions_resumed} of {work.partitions} partitions"
        return found | rows

    def to_parts(self) -> list[Part]:
        """As of every result, and the sources with the smallest p-values, SHOWN at most."""
        rows = sorted(self.source_rows(), key=lambda row: (row["log10_pvalue"], row["source"]))
        table = tuple(
            (
                row["source"] or "(none)",
                f"{row['records']:,}",
                f"{row['n']:,}",
                "-" if row["green_rate"] is None else f"{row['green_rate']:.4f}",
                f"{row['log10_pvalue']:.2f}",
                f"{row['log10_pvalue_adjusted']:.2f}",
                row["verdict"],
            )
            for row in rows[:SHOWN]
        )
        heads = ("source", "records", "n", "green", "log10 p", "adjusted", "verdict")
        wide = max(len(row[0]) for row in (heads, *table))
        form = f"{{:{wide}}} {{:>10}} {{:>13}} {{:>7}} {{:>11}} {{:>11}}   {{}}"
        found = [*super().to_parts(), Paragraph(), Table(heads, table, form)]
        more = len(rows) - len(table)
        return [*found, Paragraph(f"and {more:,} more, see --json")] if more else found

    def _draw(self, ax: Axes) -> None:
        names = [source.name or "(none)" for source in self.sources]
        ax.barh(names, -self.source_log10_adjusted)
        ax.axvline(-math.log10(self.alpha), color="C3", linestyle="--", label=f"alpha {self.alpha:g}")
        ax.set_xlabel("-log10 p of each source, after Holm")
        ax.legend()

    def source_rows(self) -> list[dict[str, Any]]:
        """One object a source, by name."""
        level = np.log10(self.alpha)
        numbers = zip(
            self.sources, self.source_log10_pvalues.tolist(), self.source_log10_adjusted.tolist(), strict=True
        )
        return [
            {
                "source": source.name,
                "verdict": CARRIES if adjusted <= level else INSUFFICIENT if source.n else NO_VERDICT,
                "n": source.n,
                "green": source.green,
                "green_rate": source.green / (source.n * self.mark.scheme.coins) if source.n else None,
                "log10_pvalue": raw,
                "log10_pvalue_adjusted": adjusted,
                "records": source.records,
                "tokens": source.tokens,
            }
            for source, raw, adjusted in numbers
        ]


@noted
def corpus_test(
    mark_path: str | Path,
    paths: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    source_column: str = "source",
    unmarked_prompts: bool = False,
    alpha: float = 1e-3,
    tokenizer: str | Path | None = None,
    columns: Columns | None = None,
    skip_bad: bool = False,
    workers: int = 1,
    allow_readable: bool = False,
    encoder: Callable[[Mark, Path | None], Encode] = encoder,
    progress: Stages = silent,
) -> CorpusResult:
    """Test more text than fits in memory, its sources and its documents; go on with a run that was killed.

    Args:
        mark_path: the mark file; each worker loads it.
        paths: files, as for `verify.read_outputs`.
        out: folder for the results, and for what passes between the steps: some 4 width + 12 bytes a token, removed at
            the end.
        source_column: the field (of JSONL) or column (of Parquet) that names a record's source.
        unmarked_prompts: nobody who wrote the prompts knew the secret or copied marked text.
        alpha: level of the verdicts, fixed before looking.
        tokenizer: folder of the tokenizer, if not where the mark says.
        columns: where the fields are in records of no known shape, as for `verify.read_outputs`.
        skip_bad: count malformed records instead of stopping at one.
        workers: 1: this process; more: so many workers of Ray.
        allow_readable: accept a mark file that others may read.
        encoder: makes the function from texts to ids, from a mark and the folder of its tokenizer.
        progress: opened around each piece of work.

    Raises:
        InputError: a file cannot be read or has changed since the run began, a record is malformed, or the folder
            holds a run with other settings or files, or one that is at work.
        MarkError, TokenizerError: the mark or its tokenizer cannot be used.
        StillmarkError: Ray is not installed.
    """
    mark_path, folder = Path(mark_path), Path(out)
    check_columns(columns)
    inputs = list(files_of(paths))
    unmarked = unmarked_prompts
    mark = Mark.load(mark_path, allow_readable=allow_readable)
    if mark.scheme.shared:
        raise MarkError(
            "a corpus is tested pair by pair, and pairs of this mark share coins", "test its files with `text_test`"
        )
    settings = Settings(
        mark.commitment,
        alpha,
        unmarked,
        skip_bad,
        source_column,
        str(tokenizer) if tokenizer else None,
        None if columns is None else dict(columns),
    )
    with lock(folder):
        with progress(on("checking", inputs), "files") as update:
            plan = plan_of(folder, inputs, settings, mark.seal_key, update)
        items, parts = len(plan.items), plan.partitions
        if (folder / COUNTS).exists():
            _check_documents(folder, _load_counts(folder / COUNTS, mark.seal_key))
            work = Work(items, items, parts, parts)
        else:
            job = Job(folder, mark_path, allow_readable, encoder)
            with cluster(workers):
                with progress(on("reading", inputs), "work items") as update:
                    read = _do(job, MAP, [item_path(folder, i) for i in range(items)], workers, update)
                with progress(on("testing", inputs), "partitions") as update:
                    judged = _do(job, REDUCE, [part_path(folder, i) for i in range(parts)], workers, update)
            _check_empty(folder, plan, mark.seal_key)
            counts = _count(folder, plan, mark.seal_key)
            if unmarked and counts["prompts_test"]:
                check_unmarked(PromptsTest(**counts["prompts_test"]), " ".join(map(str, inputs)))
            with files.writing(folder):
                counts["discoveries"] = _write_documents(folder, mark, alpha, items)
                counts["documents_digest"] = files.sha256(folder / DOCUMENTS)
                files.replace(folder / COUNTS, with_seal(counts, mark.seal_key, COUNTS))
            work = Work(items, read, parts, judged)
        for done_with in ("items", "parts"):
            shutil.rmtree(folder / done_with, ignore_errors=True)
        counts = _load_counts(folder / COUNTS, mark.seal_key)
    counts.pop("documents_digest", None)
    sources = tuple(Source(**source) for source in counts.pop("sources"))
    read_as = described(counts.pop("shapes", {}))
    n, green, bad, coins = counts["n"], counts["green"], counts["bad"], mark.scheme.coins
    notes: tuple[str, ...] = (left_out_bad(bad, counts["first_bad"]),) if bad else ()
    if beside := counts.pop("beside", []):
        notes += (note_on_beside(beside),)
    shown = counts.pop("prompts_test")
    if shown and not unmarked and tokenizer_if_there(mark, tokenizer) is None:
        notes += (NOT_COMPARED,)
    return CorpusResult(
        test=method_words(mark, BINOMIAL),
        alpha=alpha,
        statistic=green,
        log10_pvalue=binomial.binomial_log10_sf(green, n * coins, mark.scheme.rate),
        warnings=text_warnings(n, counts["tokens"], counts["discarded"], counts["prompts"], counts["records"]) + notes,
        conclusive=n > 0,
        power_statement=rate_statement(binomial.detectable_rate(n * coins, mark.scheme.rate, alpha, POWER)),
        mark=mark,
        **counts,
        prompts_test=None if shown is None else PromptsTest(**shown),
        unmarked=unmarked,
        sources=sources,
        source_log10_pvalues=np.array(
            [binomial.binomial_log10_sf(s.green, s.n * coins, mark.scheme.rate) for s in sources]
        ),
        documents=folder / DOCUMENTS,
        work=work,
        inputs={"files": [str(path) for path in inputs]} | ({"read_as": read_as} if read_as else {}),
    )


COUNTS: Final = "counts.json"
DOCUMENTS: Final = "documents.parquet"


def _load_counts(path: Path, key: bytes) -> dict[str, Any]:
    try:
        return check_seal(load_object(path), key, path, COUNTS)
    except (OSError, JsonError) as error:
        raise InputError(path, 0, f"cannot read: {error}", "remove the folder, and start anew") from None


def _check_documents(folder: Path, counts: dict[str, Any]) -> None:
    """Raises InputError where the documents' file of a finished run is not the one that it wrote."""
    path = folder / DOCUMENTS
    if not path.is_file():
        raise InputError(path, 0, "is not there, and the run had written it", "remove the folder, and start anew")
    if files.sha256(path) != counts.get("documents_digest"):
        raise InputError(path, 0, "was changed since this run wrote it", "remove the folder, and start anew")


def _do(job: Job, step: str, results: list[Path], workers: int, update: Progress) -> int:
    """Do a step for each result that is not there yet; returns how many are."""
    todo = [i for i, path in enumerate(results) if not path.exists()]
    there = len(results) - len(todo)
    run_steps(job, step, todo, workers, lambda done: update(there + done, len(results)))
    return there


def _check_empty(folder: Path, plan: CorpusPlan, key: bytes) -> None:
    facts = list(read_facts(folder, len(plan.items), key))
    read = {path for one in facts for path in one["files"]}
    for path, *_ in plan.files:
        if path not in read:
            raise no_records(Path(path))
    bad = sum(one["bad"] for one in facts)
    if bad and not any(sum(one["records"]) for one in facts):
        first = next(one["first_bad"] for one in facts if one["bad"])
        raise none_good([Path(path) for path, *_ in plan.files], bad, first)


def _count(folder: Path, plan: CorpusPlan, key: bytes) -> dict[str, Any]:
    """Add up what was read, and what partitions counted: whole numbers, so that the order is no matter."""
    facts = list(read_facts(folder, len(plan.items), key))
    names = source_names(facts)
    tally = np.zeros((1 + len(names), len(TALLY)), np.int64)
    for part in range(plan.partitions):
        tally += read_tally(folder, part, key)
    totals = dict(zip(TALLY, tally[0].tolist(), strict=True))
    records, tokens = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    discarded: dict[str, int] = {}
    for one in facts:
        for name, more_records, more_tokens in zip(one["names"], one["records"], one["tokens"], strict=True):
            records[name] += more_records
            tokens[name] += more_tokens
        for reason, number in one["discarded"].items():
            discarded[reason] = discarded.get(reason, 0) + number
    return {
        "n": totals.pop("n"),
        "green": totals.pop("green"),
        "tokens": sum(tokens.values()),
        "discarded": discarded | totals,
        "records": sum(records.values()),
        "prompts": sum(one["prompts"] for one in facts),
        "prompts_test": vars(tested) if (tested := of_parts([one["prompts_test"] for one in facts])) else None,
        "bad": sum(one["bad"] for one in facts),
        "shapes": added(one["shapes"] for one in facts),
        "beside": sorted(set().union(*(one["beside"] for one in facts))),
        "first_bad": next((one["first_bad"] for one in facts if one["first_bad"]), None),
        "sources": [
            vars(Source(name, records[name], tokens[name], n, green))
            for name, (n, green) in zip(names, tally[1:, :2].tolist(), strict=True)
        ],
    }


def _write_documents(folder: Path, mark: Mark, alpha: float, items: int) -> int:
    """Every document with its p- and q-value, in the order of the files; returns how many q are at most alpha."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [item_path(folder, item) / DOCUMENTS for item in range(items)]
    counted = [pq.read_table(table, columns=["n", "green"]) for table in tables]
    n, green = (np.concatenate([table.column(name).to_numpy() for table in counted]) for name in ("n", "green"))
    kinds, which = np.unique(np.column_stack([n, green]), axis=0, return_inverse=True)
    coins, rate = mark.scheme.coins, mark.scheme.rate
    p = np.array([binomial.binomial_log10_sf(hits, pairs * coins, rate) for pairs, hits in kinds.tolist()])
    p = p[which.ravel()] if len(p) else np.zeros(0)
    q = multiple.benjamini_hochberg(p)
    scratch, start = folder / ".documents.parquet", 0
    writer = None
    for path in tables:
        table = pq.read_table(path)
        stop = start + len(table)
        table = table.append_column("log10_pvalue", pa.array(p[start:stop]))
        table = table.append_column("log10_qvalue", pa.array(q[start:stop]))
        writer = writer or pq.ParquetWriter(scratch, table.schema, compression="zstd")
        writer.write_table(table)
        start = stop
    assert writer is not None
    writer.close()
    files.publish(scratch, folder / DOCUMENTS)
    return int((q <= np.log10(alpha)).sum())
