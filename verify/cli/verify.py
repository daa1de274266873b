"""stillmark verify: test a suspect for a mark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from verify.cli.common import FILE, json_option, load_mark, mark_option, print_json, progress, scientific
from verify.verdicts import CARRIES, INSUFFICIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.outputs import Encode, Output, Reading
    from verify.radioactivity import TextResult
    from watermark import Mark


@click.group()
def verify() -> None:
    """Test a suspect for a mark, with exact p-values."""


@verify.command()
@mark_option()
@click.argument("outputs", type=FILE, nargs=-1, required=True)
@click.option("--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=1e-3, show_default=True)
@click.option("--prompts-keyless", is_flag=True, help="The prompts cannot carry the mark: keep windows seen in them.")
@click.option("--tokenizer", type=FILE, help="Folder of the mark's tokenizer, for outputs without ids.")
@click.option("--skip-bad", is_flag=True, help="Count malformed records instead of stopping at the first.")
@click.option(
    "--fail-on", type=click.Choice([CARRIES, INSUFFICIENT]), help="Exit with status 3 if this is the verdict."
)
@json_option
@click.pass_context
def text(
    ctx: click.Context,
    mark_path: Path,
    allow_readable: bool,
    outputs: tuple[Path, ...],
    alpha: float,
    prompts_keyless: bool,
    tokenizer: Path | None,
    skip_bad: bool,
    fail_on: str | None,
    as_json: bool,
) -> None:
    """Test what a suspect wrote.

    OUTPUTS are JSONL or Parquet files, a record a row (`output_ids` or `output`, and `prompt_ids` or `prompt`
    if there was one), or .txt files, an output each.
    """
    from verify import pairs, radioactivity
    from verify.outputs import Reading, read_outputs

    loaded = load_mark(mark_path, allow_readable)
    reading = Reading()
    with progress("reading", "records") as update:

        def counted(stream: Iterator[Output]) -> Iterator[Output]:
            for output in stream:
                if reading.records % 100 == 0:
                    update(reading.records, None)
                yield output

        stream = read_outputs(
            outputs,
            encode=_encoder(loaded, tokenizer),
            vocabulary_size=loaded.vocabulary_size,
            need_prompts=not prompts_keyless,
            skip_bad=skip_bad,
            reading=reading,
        )
        found = pairs.extract(counted(stream), loaded.width, loaded.exempt, prompts_keyless=prompts_keyless)
    result = radioactivity.text_test(loaded, found, alpha)
    if as_json:
        print_json(result.to_dict() | {"files": [str(path) for path in outputs], "bad_records": reading.bad})
    else:
        _print(result, reading)
    if fail_on == result.verdict:
        ctx.exit(3)


def _encoder(mark: Mark, path: Path | None) -> Encode:
    """Texts to ids by the mark's tokenizer, which is loaded when first needed."""
    tokenizer = None

    def encode(texts: list[str]) -> list[list[int]]:
        nonlocal tokenizer
        if tokenizer is None:
            from verify.cli.common import quiet_transformers
            from watermark.tokenizers import load_for

            quiet_transformers()
            tokenizer = load_for(mark, path)
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    return encode


def _print(result: TextResult, reading: Reading) -> None:
    found = result.pairs
    low, high = result.confidence_interval()
    rate = "-" if result.green_rate is None else f"{result.green_rate:.4f}"
    left_out = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in result.discarded.items() if count)
    rows = {
        "p-value": f"{scientific(result.log10_pvalue)}   (log10 p {result.log10_pvalue:.2f}; alpha {result.alpha:g})",
        "green rate": f"{rate}   (chance {result.mark.gamma:.4f}; 95 % interval {low:.4f} to {high:.4f})",
        "pairs scored": f"{result.n:,} distinct, of {found.positions:,} positions in {found.records:,} records",
        "left out": left_out or "nothing",
        "mark": f"{result.mark.label or '(no label)'}, commitment {result.mark.commitment[:16]}...",
    }
    click.secho(result.verdict, bold=True)
    for name, value in rows.items():
        click.echo(f"  {name:13} {value}")
    if result.verdict == INSUFFICIENT:
        if result.detectable_rate is None:
            click.echo("  found could be  nothing: too few pairs for this alpha, whatever their color")
        else:
            click.echo(f"  could be seen a green rate of {result.detectable_rate:.4f} or more, with 90 % power")
    click.echo(f"\n{result.randomness}")
    for warning in result.warnings:
        click.echo(f"Note: {warning}", err=True)
    if reading.bad:
        click.echo(f"Note: {reading.bad} bad records were left out; the first: {reading.first_bad}", err=True)
