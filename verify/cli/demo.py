"""stillmark demo: the main job, end to end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from verify.cli.common import FILE, json_option, print_json
from watermark.tokenizers import quiet_transformers

if TYPE_CHECKING:
    from verify.planning.demo import Row


@click.command()
@click.option("--model", type=FILE, help="Folder of a causal LM to use as teacher, instead of SmolLM2-135M-Instruct.")
@click.option("--out", type=FILE, default=Path("demo"), show_default=True, help="Folder for all that the demo makes.")
@json_option
def demo(model: Path | None, out: Path, as_json: bool) -> None:
    """Mark a teacher, train a student on it, and tell that student from innocent models.

    Takes about six minutes on two cores. Killed, it goes on where it was.
    """
    from verify.planning import demo as script

    start = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"[{time.monotonic() - start:4.0f} s] {line}", err=True)

    if model is None:
        quiet_transformers()
        say(f"teacher: {script.TEACHER} (converted once, then cached)")
        model = script.teacher_model()
    rows = script.run(model, out, say)
    if as_json:
        print_json({"rows": [{"who": row.who, "by": row.by, "right": row.right, **row.result} for row in rows]})
    else:
        _print(rows)
    say("done")


def _print(rows: list[Row]) -> None:
    click.echo(f"{'who':20} {'by':8} {'n':>8} {'log10 p':>10}   {'verdict':22} right?")
    for row in rows:
        numbers = f"{row.result['n']:8,} {row.result['log10_pvalue']:10.2f}"
        click.echo(f"{row.who:20} {row.by:8} {numbers}   {row.result['verdict']:22} {'yes' if row.right else 'NO'}")
    click.echo(f"\nn: distinct (context, token) pairs; the verdict is positive where p <= {rows[0].result['alpha']:g}.")
