"""stillmark verify corpus: more text than fits in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from verify.cli.common import (
    FILE,
    alpha_option,
    fail_on_option,
    json_option,
    mark_option,
    print_json,
    progress,
    skip_bad_option,
    tokenizer_option,
    unmarked_prompts_option,
)
from verify.cli.results import mention_bad, print_rows
from verify.results import scientific
from watermark.tokenizers import encoder

if TYPE_CHECKING:
    from verify.corpus.test import CorpusResult

_SHOWN: Final = 20  # sources


@click.command()
@mark_option()
@click.argument("inputs", type=FILE, nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="Folder for the results; a killed run goes on from here.")
@click.option("--source-column", default="source", show_default=True, help="The field that names a record's source.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="More than one: by Ray.")
@unmarked_prompts_option
@tokenizer_option
@alpha_option
@skip_bad_option
@fail_on_option
@json_option
@click.pass_context
def corpus(
    ctx: click.Context,
    mark_path: Path,
    allow_readable: bool,
    inputs: tuple[Path, ...],
    out: Path,
    source_column: str,
    workers: int,
    unmarked_prompts: bool,
    tokenizer: Path | None,
    alpha: float,
    skip_bad: bool,
    fail_on: str | None,
    as_json: bool,
) -> None:
    """Test a corpus, its sources and its documents for the mark.

    INPUTS are files as in `verify text`; a record may name its `source`. The corpus' answer is that of `verify text`
    on all files together, a source's that on its records alone, and a document's (in documents.parquet, in the --out
    folder) that on itself. Sources are judged after Holm's adjustment for their number, documents by q-values after
    Benjamini and Hochberg; each at level alpha.

    Memory does not grow with the text; the --out folder takes some 4 width + 12 bytes a token until the end. The same
    command goes on after a kill. More workers (pip install 'stillmark[ray]') find the same, to the bit.
    """
    from verify.corpus.test import run

    with progress("reading and testing", "steps") as update:
        result = run(
            inputs,
            mark_path,
            out,
            encoder,
            allow_readable=allow_readable,
            tokenizer=tokenizer,
            unmarked=unmarked_prompts,
            skip_bad=skip_bad,
            source_column=source_column,
            alpha=alpha,
            workers=workers,
            progress=update,
        )
    if as_json:
        print_json(result.to_dict() | {"files": [str(path) for path in inputs]})
    else:
        _print(result)
    mention_bad(result.bad, result.first_bad)
    if fail_on == result.verdict:
        ctx.exit(3)


def _print(result: CorpusResult) -> None:
    click.secho(result.verdict, bold=True)
    log10, (low, high) = result.log10_pvalue, result.confidence_interval()
    rate = "-" if result.green_rate is None else f"{result.green_rate:.4f}"
    rows = {
        "p-value": f"{scientific(log10)}   (log10 p {log10:.2f}; alpha {result.alpha:g})",
        "green rate": f"{rate}   (chance {result.mark.gamma:.4f}; 95 % interval {low:.4f} to {high:.4f})",
        "pairs scored": f"{result.n:,} distinct, of {result.tokens:,} positions in {result.records:,} records",
        "test": result.test,
        "documents": f"{result.discoveries:,} of {result.records:,} with q at most {result.alpha:g}",
        "written to": str(result.documents),
    }
    if result.work.items_resumed or result.work.partitions_resumed:
        work = result.work
        resumed = f"{work.items_resumed} of {work.items} work items"
        rows["resumed"] = f"{resumed}, {work.partitions_resumed} of {work.partitions} partitions"
    print_rows(rows, result, result.discarded)
    _print_sources(result.source_rows())
    click.echo(f"\n{result.randomness}")
    for warning in result.warnings:
        click.echo(f"Note: {warning}", err=True)


def _print_sources(sources: list[dict[str, Any]]) -> None:
    shown = sorted(sources, key=lambda row: (row["log10_pvalue"], row["source"]))[:_SHOWN]
    wide = max(6, *(len(row["source"] or "(none)") for row in shown)) if shown else 6
    click.echo(f"\n{'source':{wide}} {'records':>10} {'n':>13} {'green':>7} {'log10 p':>11} {'adjusted':>11}   verdict")
    for row in shown:
        rate = "-" if row["green_rate"] is None else f"{row['green_rate']:.4f}"
        click.echo(
            f"{row['source'] or '(none)':{wide}} {row['records']:>10,} {row['n']:>13,} {rate:>7} "
            f"{row['log10_pvalue']:>11.2f} {row['log10_pvalue_adjusted']:>11.2f}   {row['verdict']}"
        )
    if len(sources) > len(shown):
        click.echo(f"and {len(sources) - len(shown):,} more, see --json")
