"""stillmark demo: the main job, end to end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from verify.cli.common import FILE, command, json_option, print_json, progress
from verify.words import in_cli_words
from watermark.tokenizers import quiet_transformers

if TYPE_CHECKING:
    from verify.planning.demo import Row
    from verify.planning.workers import Show, Task

QUIET: Final = 30.0
"""Seconds between two lines of progress, where there is no terminal for a bar."""


@command("demo", example="demo")
@click.option("--model", type=FILE, help="Folder of a causal LM to use as teacher, instead of SmolLM2-135M-Instruct.")
@click.option("--out", type=FILE, default=Path("demo"), show_default=True, help="Folder for all that the demo makes.")
@json_option
def demo(model: Path | None, out: Path, as_json: bool) -> None:
    """Mark a teacher, train a student on it, and tell that student from innocent models.

    Takes about six minutes on two cores, no GPU. If it was killed, run it again: it goes on where it was.
    """
    from verify.planning import demo as script

    with _display() as (say, show):
        if model is None:
            quiet_transformers()
            say(f"teacher: {script.TEACHER} (converted once, then cached)")
            model = script.teacher_model()
        rows = script.run(model, out, say, show)
    found = script.verdict(model, out, lambda line: click.echo(line, err=True), progress)
    if as_json:
        table = [{"who": row.who, "by": row.by, "right": row.right, **row.result} for row in rows]
        print_json({"rows": table, "verdict": found.to_dict()})
    else:
        _print(rows)
        click.echo("\nWhat `stillmark verify` says of the student of marked:\n")
        click.echo(in_cli_words(str(found)))
        click.echo("\nWhat to try next:")
        for purpose, words in script.what_next(model, out):
            click.echo(f"\n  {purpose}:\n    {words}")


def _print(rows: list[Row]) -> None:
    click.echo(f"{'who':20} {'by':8} {'n':>8} {'log10 p':>10}   {'verdict':22} right?")
    for row in rows:
        numbers = f"{row.result['n']:8,} {row.result['log10_pvalue']:10.2f}"
        click.echo(f"{row.who:20} {row.by:8} {numbers}   {row.result['verdict']:22} {'yes' if row.right else 'NO'}")
    click.echo(f"\nn: distinct (context, token) pairs; the verdict is positive where p <= {rows[0].result['alpha']:g}.")


@contextmanager
def _display() -> Iterator[tuple[Callable[[str], None], Show]]:
    """How the demo talks, on stderr: lines with the time, and bars on a terminal, elsewhere a line now and then."""
    start = time.monotonic()

    def stamp(line: str) -> str:
        return f"[{time.monotonic() - start:4.0f} s] {line}"

    if not sys.stderr.isatty():
        last: dict[str, float] = {}

        def line(task: Task, done: int, total: int | None) -> None:
            now = time.monotonic()
            if now - last.setdefault(task.what, now) >= QUIET:
                last[task.what] = now
                click.echo(stamp(f"  {task.what}: {done} of {total} {task.unit}"), err=True)

        yield lambda text: click.echo(stamp(text), err=True), line
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        bars: dict[str, TaskID] = {}

        def bar(task: Task, done: int, total: int | None) -> None:
            if task.what not in bars:
                bars[task.what] = shown.add_task(task.what, unit=task.unit, total=total)
            shown.update(bars[task.what], completed=done, total=total, visible=done != total)

        yield (
            lambda text: console.print(stamp(text), markup=False, highlight=False, emoji=False, soft_wrap=True),
            bar,
        )
