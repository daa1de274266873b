"""stillmark attribute: whose outputs were used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from verify.cli.common import (
    FILE,
    alpha_option,
    json_option,
    load_mark,
    mark_option,
    print_json,
    progress,
    skip_bad_option,
    tokenizer_option,
    unmarked_prompts_option,
)
from verify.cli.results import mention_bad
from verify.results import scientific
from watermark import InputError

if TYPE_CHECKING:
    from verify.radioactivity.attribution import Attribution


@click.command()
@mark_option()
@click.option("--labels", "labels_path", type=FILE, required=True, help="Text file: a label a line.")
@click.argument("outputs", type=FILE, nargs=-1, required=True)
@unmarked_prompts_option
@tokenizer_option
@alpha_option
@skip_bad_option
@click.option("--fail-on", type=click.Choice(["attributed", "none", "ambiguous"]), help="Exit with status 3 if so.")
@json_option
@click.pass_context
def attribute(
    ctx: click.Context,
    mark_path: Path,
    allow_readable: bool,
    labels_path: Path,
    outputs: tuple[Path, ...],
    unmarked_prompts: bool,
    tokenizer: Path | None,
    alpha: float,
    skip_bad: bool,
    fail_on: str | None,
    as_json: bool,
) -> None:
    """Find the customers (months, ...) whose marked outputs a suspect's text shows.

    --mark names the parent, of which each label's mark was derived (`stillmark mark derive`). OUTPUTS are records as
    in `verify text`. The chance of naming any wrong label is at most alpha, over all labels. The answer may be a set
    of labels, nobody (`none`), or `ambiguous`: some label's mark is there, and it cannot be told whose.
    """
    from verify.data.outputs import read_outputs
    from verify.data.pairs import extract
    from verify.radioactivity import attribution

    mark = load_mark(mark_path, allow_readable)
    labels = attribution.read_labels(labels_path)
    written = read_outputs(outputs, mark, tokenizer=tokenizer, need_prompts=not unmarked_prompts, skip_bad=skip_bad)
    if written.sequential:
        raise InputError(outputs[0], 0, "holds answers that were collected until the evidence sufficed", "no such text")
    pairs = extract(written, mark.width, mark.exempt, unmarked_prompts=unmarked_prompts)
    with progress("trying labels", "labels") as update:
        result = attribution.attribute(mark, labels, pairs, alpha, update)
    if as_json:
        print_json(result.to_dict() | {"files": [str(path) for path in outputs], "bad_records": written.bad})
    else:
        _print(result)
    for warning in result.warnings:
        click.echo(f"Note: {warning}", err=True)
    mention_bad(written.bad, written.first_bad)
    if fail_on == result.verdict:
        ctx.exit(3)


def _print(result: Attribution) -> None:
    click.secho(result.verdict, bold=True)
    for one in result.found:
        click.echo(
            f"  {one.label:24} adjusted p {scientific(one.log10_pvalue_adjusted)}   "
            f"(log10 p {one.log10_pvalue:.2f}; green rate {one.green_rate:.4f})"
        )
    least = result.detectable_rate
    could = "nothing: too few pairs" if least is None else f"a green rate of {least:.4f} or more, with 90 % power"
    rows = {
        "labels": f"{len(result.labels):,}, adjusted over all by Holm's method; alpha {result.alpha:g}",
        "pairs scored": f"{result.n:,} distinct, of {result.pairs.positions:,} positions",
        "all labels": f"{scientific(result.log10_pvalue_joint)}   (is any of their marks there)",
        "the parent": f"{scientific(result.log10_pvalue_parent)}   (is its own mark there)",
        "could be seen": could,
    }
    for name, value in rows.items():
        click.echo(f"  {name:13} {value}")
