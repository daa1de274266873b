"""What the commands share: options, help with an example, progress, and how results and errors are shown."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from verify.results import CARRIES, INSUFFICIENT, NO_VERDICT
from watermark import Mark
from watermark.io import files
from watermark.io.records import RecordError

if TYPE_CHECKING:
    from watermark.progress import Progress

FILE = click.Path(path_type=Path)
"""A path that the command itself checks, so that its errors carry a hint."""

OPTIONS: Final = {
    "api": "--api",
    "access": "--access",
    "alpha": "--alpha",
    "answers": "--answers",
    "base": "--base",
    "budget": "--budget-tokens",
    "budget_usd": "--budget-usd",
    "canaries": "--canaries",
    "columns": "--columns",
    "context_counts": "--context-counts",
    "controls": "--control",
    "decoys": "--decoys",
    "delta": "--delta",
    "effect": "--effect",
    "labels": "--labels",
    "log": "--log",
    "mark": "--mark",
    "max_tokens": "--max-tokens",
    "method": "--method",
    "model": "--model",
    "number": "--number",
    "out": "--out",
    "plan": "--plan",
    "planted": "--planted",
    "price_in": "--price-in",
    "price_out": "--price-out",
    "probes": "--probes",
    "prompts": "--prompts",
    "reasoning": "--score-reasoning",
    "record": "--record",
    "reference": "--reference",
    "samples": "--samples",
    "skip_bad": "--skip-bad",
    "suspect": "--suspect",
    "teacher": "--teacher",
    "tokenizer": "--tokenizer",
    "top": "--top",
    "top_logprobs": "--top-logprobs",
    "unmarked_probes": "--unmarked-probes",
    "unmarked_prompts": "--unmarked-prompts",
}
"""A parameter of the library, as texts of the library name it between backticks: the option of the commands."""


def in_cli_words(text: str) -> str:
    """A text of the library with its parameters spelled as options.

    >>> in_cli_words("say so with `unmarked_prompts=True`, or name a `reference`; `this` stays")
    'say so with --unmarked-prompts, or name a --reference; `this` stays'
    """

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in OPTIONS:
            return found.group()
        value = {None: "", "True": ""}.get(value, f" {value}")
        return OPTIONS[name] + value

    return re.sub(r"`([a-z_]+)(?:=([^`]+))?`", option, text)


class Command(click.Command):
    """A command whose help opens with an example that runs. example: one or more lines, without `stillmark`."""

    def __init__(self, *arguments: Any, example: str, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.example = example

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = "\n".join(f"  stillmark {line}" for line in self.example.splitlines())
        formatter.write(f"Example:\n{lines}\n\n")
        super().format_help(ctx, formatter)


def command(name: str | None = None, *, example: str) -> Callable[[Callable[..., Any]], Command]:
    """The decorator that makes a `Command`."""
    return click.command(name, cls=Command, example=example)


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
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=1e-3,
    show_default=True,
    help="Level of the verdict; fix it before you look.",
)
reference_option = click.option(
    "--reference", type=FILE, help="Folder of a model to compare with that does not depend on the secret."
)
unmarked_prompts_option = click.option(
    "--unmarked-prompts", is_flag=True, help="The prompts cannot carry the mark: keep contexts seen in them."
)
unmarked_probes_option = click.option(
    "--unmarked-probes", is_flag=True, help="The probes cannot carry the mark: keep contexts that come again in them."
)
tokenizer_option = click.option("--tokenizer", type=FILE, help="Folder of the mark's tokenizer.")
batch_size_option = click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Texts in one forward pass."
)


def _columns(_ctx: click.Context, _option: click.Parameter, value: str | None) -> dict[str, str] | None:
    if value is None:
        return None
    pairs = [one.partition("=") for one in value.split(",")]
    found = {name.strip(): path.strip() for name, _, path in pairs}
    if len(found) < len(pairs) or not all(found) or not all(found.values()):
        raise click.BadParameter("want FIELD=COLUMN,FIELD=COLUMN, such as prompt=question,output=model.text")
    return found


columns_option = click.option(
    "--columns", callback=_columns, metavar="FIELD=COLUMN,...",
    help="Where the fields are in records of no known shape: prompt=question,output=model.text.",
)  # fmt: skip


def fail_on_option(*verdicts: str) -> Callable[[Any], Any]:
    """Adds `--fail-on VERDICT` as `fail_on`; no verdict named: those of a test for a mark."""
    choice = click.Choice(verdicts or (CARRIES, INSUFFICIENT, NO_VERDICT))
    return click.option("--fail-on", type=choice, help="Exit with status 3 if this is the verdict.")


def skip_bad_option(command: Any) -> Any:
    """Adds `--skip-bad` as `skip_bad`; without it, errors of a malformed record name the option."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except RecordError as error:
            if not options["skip_bad"]:
                error.hint = (f"{error.hint}; or " if error.hint else "") + "leave bad records out with `skip_bad=True`"
            raise

    return click.option("--skip-bad", is_flag=True, help="Count malformed records instead of stopping at the first.")(
        run
    )


def json_option(command: Any) -> Any:
    """Adds `--json` as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")(command)


class Shown(Protocol):
    """What `show` prints: any result."""

    @property
    def verdict(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


def show(result: Shown, *, as_json: bool, fail_on: str | None = None) -> None:
    """Print a result, for a program or for a person, and set the exit status."""
    if as_json:
        print_json(result.to_dict())
    else:
        first, _, rest = in_cli_words(str(result)).partition("\n")
        click.secho(first, bold=True)
        click.echo(rest)
    if fail_on == result.verdict:
        click.get_current_context().exit(3)


def print_json(value: dict[str, Any]) -> None:
    """One object on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def progress(what: str, unit: str = "") -> Iterator[Progress]:
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
        with files.writing(folder, hint="is there a file in its place?"):
            folder.mkdir(parents=True, exist_ok=True)
