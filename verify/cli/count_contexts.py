"""stillmark count-contexts: count what the teacher emitted."""

from __future__ import annotations

from pathlib import Path

import click

from verify.cli.common import FILE, columns_option, command, json_option, mark_option, progress, show, tokenizer_option
from watermark import Mark


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
    mark: Mark,
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

    counted = count_contexts(outputs, mark, tokenizer=tokenizer, columns=columns, progress=progress)
    counted.save(out)
    show({"out": str(out)} | counted.to_dict(), f"wrote {counted} to {out}", as_json=as_json)
