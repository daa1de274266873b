"""stillmark count-contexts: count what the teacher emitted."""

from __future__ import annotations

from pathlib import Path

import click

from verify.cli.common import FILE, json_option, load_mark, mark_option, print_json, tokenizer_option


@click.command("count-contexts")
@mark_option()
@click.argument("outputs", type=FILE, nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="Parquet: each context and how often it was emitted.")
@tokenizer_option
@json_option
def count_contexts(
    mark_path: Path, allow_readable: bool, outputs: tuple[Path, ...], out: Path, tokenizer: Path | None, as_json: bool
) -> None:
    """Count the contexts in outputs of the teacher, for the option --context-counts of other commands.

    Outputs that were generated without the mark leave the tests that use the counts exact. Counts of marked outputs
    depend on the key, a little: each test that uses them says so.
    """
    from verify.data import context_counts as counting
    from verify.data.outputs import read_outputs

    mark = load_mark(mark_path, allow_readable)
    read = read_outputs(outputs, mark, tokenizer=tokenizer)
    marked = read.marked
    counted = counting.count_contexts(read, mark.width, mark.exempt, marked)
    counting.save(counted, out)
    found = {"out": str(out), "contexts": len(counted.counts), "tokens": int(counted.counts.sum()), "marked": marked}
    if as_json:
        print_json(found)
    else:
        carries = {True: "marked", False: "unmarked", None: "perhaps marked"}[marked]
        click.echo(f"wrote {found['contexts']:,} contexts of {found['tokens']:,} {carries} tokens to {out}")
