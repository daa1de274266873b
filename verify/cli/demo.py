"""stillmark demo: the main job, end to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from verify.cli.common import FILE, can_redraw, command, json_option, print_json, progress, say
from verify.display import Paragraph, Table, inert
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

    with _display() as (tell, show):
        if model is None:
            quiet_transformers()
            tell(f"teacher: {script.TEACHER} (converted once, then kept in {script.cache_folder()})")
            model = script.teacher_model()
        rows = script.run(model, out, tell, show)
    found = script.verdict(model, out, lambda line: say(line, stderr=True), progress)
    if as_json:
        table = [{"who": row.who, "by": row.by, "right": row.right, **row.result} for row in rows]
        print_json({"rows": table, "verdict": found.to_dict()})
        return
    level = f"n: distinct (context, token) pairs; the verdict is positive where p <= {rows[0].result['alpha']:g}."
    asked = "What `stillmark verify` says of the student of marked:"
    say(
        [
            _table(rows),
            *map(_line, ("", level, "", asked, "")),
            *found.to_parts(),
            *map(_line, ("", "What to try next:")),
        ]
    )
    for purpose, words in script.what_next(model, out):
        # as one line, to be copied
        say([_line(), _line(f"  {purpose}:")])
        click.echo(f"    {inert(words)}")


def _line(text: str = "") -> Paragraph:
    return Paragraph(text, whole=True)


def _table(rows: list[Row]) -> Table:
    lines = tuple(
        (
            row.who,
            row.by,
            f"{row.result['n']:,}",
            f"{row.result['log10_pvalue']:.2f}",
            row.result["verdict"],
            "yes" if row.right else "NO",
        )
        for row in rows
    )
    return Table(("who", "by", "n", "log10 p", "verdict", "right?"), lines, "{:20} {:8} {:>8} {:>10}   {:22} {}")


@contextmanager
def _display() -> Iterator[tuple[Callable[[str], None], Show]]:
    """How the demo talks, on stderr: lines with the time, and bars on a terminal, elsewhere a line now and then."""
    start = time.monotonic()

    def stamp(line: str) -> str:
        return f"[{time.monotonic() - start:4.0f} s] {inert(line)}"

    if not can_redraw():
        last: dict[str, float] = {}

        def now_and_then(task: Task, done: int, total: int | None) -> None:
            now = time.monotonic()
            if now - last.setdefault(task.what, now) >= QUIET and total is not None:
                last[task.what] = now
                click.echo(stamp(f"  {task.what}: {done} of {total} {task.unit}"), err=True)

        yield lambda text: click.echo(stamp(text), err=True), now_and_then
        return

    from verify.cli.bars import Line, bars

    with bars() as shown:
        lines: dict[str, Line] = {}

        def bar(task: Task, done: int, total: int | None) -> None:
            if task.what not in lines:
                lines[task.what] = shown.line(task.what, task.unit)
            lines[task.what].update(done, total)
            lines[task.what].task.visible = done != total

        # commands are to be copied: the terminal breaks their lines, we do not
        yield lambda text: shown.console.print(stamp(text), soft_wrap=True), bar
