"""stillmark count-contexts: count what the teacher emitted."""

from __future__ import annotations

from pathlib import Path

import click

from verify.cli.common import (
    FILE,
    columns_option,
    command,
    json_option,
    load_mark,
    mark_option,
    print_json,
    progress,
    tokenizer_option,
)


@command(
    "count-contexts",
    example="count-contexts --mark demo/demo.mark demo/unmarked_teacher.jsonl --out contexts.parquet",
)
@mark_option()
@click.argument("outputs", type=FILE, nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="Parquet: each context and how often it was emitted.")
@tokenizer_option
@columns_option
@json_option
def count_contexts(
    mark_path: Path,
    allow_readable: bool,
    outputs: tuple[Path, ...],
    out: Path,
    tokenizer: Path | None,
    columns: dict[str, str] | None,
    as_json: bool,
) -> None:
    """Count the contexts in outputs of the teacher, for the option --context-counts of other commands.

    Outputs that were generated without the mark leave the tests that use the counts exact. Counts of marked outputs
    depend on the key, a little: each test that uses them says so.
    """
    from verify.data.context_counts import count_contexts

    mark = load_mark(mark_path, allow_readable)
    counted = count_contexts(outputs, mark, tokenizer=tokenizer, columns=columns, progress=progress)
    counted.save(out)
    if as_json:
        print_json({"out": str(out)} | counted.to_dict())
    else:
        click.echo(f"wrote {counted} to {out}")
