"""What the commands share: how a mark is named, progress, numbers as text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from verify.results import CARRIES, INSUFFICIENT
from watermark import Mark
from watermark.io.files import writing
from watermark.io.records import RecordError

FILE = click.Path(path_type=Path)
"""A path that the command itself checks, so that its errors carry a hint."""


def mark_option(*, required: bool = True) -> Callable[[Any], Any]:
    """Adds `--mark FILE` as `mark_path` and `--allow-readable-mark` as `allow_readable`."""

    def decorate(command: Any) -> Any:
        option = click.option("--mark", "mark_path", type=FILE, required=required, help="The mark file.")
        return option(allow_readable_option(command))

    return decorate


def allow_readable_option(command: Any) -> Any:
    """Adds `--allow-readable-mark` as `allow_readable`."""
    return click.option(
        "--allow-readable-mark", "allow_readable", is_flag=True, help="Accept a mark file that other users may access."
    )(command)


alpha_option = click.option(
    "--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=1e-3, show_default=True
)
fail_on_option = click.option(
    "--fail-on", type=click.Choice([CARRIES, INSUFFICIENT]), help="Exit with status 3 if this is the verdict."
)
unmarked_prompts_option = click.option(
    "--unmarked-prompts", is_flag=True, help="The prompts cannot carry the mark: keep contexts seen in them."
)
tokenizer_option = click.option(
    "--tokenizer", type=FILE, help="Folder of the mark's tokenizer, for records without ids."
)


def skip_bad_option(command: Any) -> Any:
    """Adds `--skip-bad` as `skip_bad`; without it, errors of a malformed record name the option."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except RecordError as error:
            if not options["skip_bad"]:
                error.hint = (f"{error.hint}; or " if error.hint else "") + "leave bad records out with --skip-bad"
            raise

    return click.option("--skip-bad", is_flag=True, help="Count malformed records instead of stopping at the first.")(
        run
    )


def json_option(command: Any) -> Any:
    """Adds `--json` as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")(command)


def print_json(value: dict[str, Any]) -> None:
    """One object on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def progress(what: str, unit: str = "") -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr, only if that is a terminal. Yields `update(done, total)`; total None: unknown."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def load_mark(path: Path, allow_readable: bool) -> Mark:
    """The mark named by the options of `mark_option`."""
    return Mark.load(path, allow_readable=allow_readable)


def make_record(folder: Path | None) -> None:
    """Make the folder of `--record`, if there is to be one. Raises InputError."""
    if folder is not None:
        with writing(folder, hint="is there a file in its place?"):
            folder.mkdir(parents=True, exist_ok=True)
