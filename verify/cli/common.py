"""What the commands share: options, help with an example, progress, and how results and errors are shown."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from verify.display import Paragraph, Part, in_words, plain
from verify.results import CARRIES, INSUFFICIENT, MOST_ALPHA, NO_VERDICT
from verify.words import in_cli_words
from watermark import Mark, UsageError
from watermark.io.records import RecordError
from watermark.progress import silent

if TYPE_CHECKING:
    from verify.lineage.single import Held
    from watermark.progress import Progress

R = TypeVar("R", bound="Held")

FILE = click.Path(path_type=Path)
"""A path that the command itself checks, so that its errors carry a hint."""


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


def marks_option(name: str = "--mark", help: str = "The mark file; repeat for several.") -> Callable[[Any], Any]:
    """Adds `--mark FILE`, any number of times, and `--allow-readable-mark`, and gives the command the loaded `mark`.

    It is one mark or a list of them; None: not named.
    """

    def decorate(command: Any) -> Any:
        @wraps(command)
        def run(*arguments: Any, mark_paths: tuple[Path, ...], allow_readable: bool, **options: Any) -> Any:
            marks = [Mark.load(path, allow_readable=allow_readable) for path in mark_paths]
            return command(*arguments, mark=marks if len(marks) > 1 else marks[0] if marks else None, **options)

        return click.option(name, "mark_paths", type=FILE, multiple=True, help=help)(allow_readable_option(run))

    return decorate


def mark_option(*, required: bool = True, name: str = "--mark", help: str = "The mark file.") -> Callable[[Any], Any]:
    """Adds `--mark FILE` and `--allow-readable-mark`, and gives the command the loaded `mark`; None: not named."""

    def decorate(command: Any) -> Any:
        @wraps(command)
        def run(*arguments: Any, mark_path: Path | None, allow_readable: bool, **options: Any) -> Any:
            mark = None if mark_path is None else Mark.load(mark_path, allow_readable=allow_readable)
            return command(*arguments, mark=mark, **options)

        return mark_file_option(required=required, name=name, help=help)(run)

    return decorate


def mark_file_option(
    *, required: bool = True, name: str = "--mark", help: str = "The mark file."
) -> Callable[[Any], Any]:
    """Adds `--mark FILE` as `mark_path` and `--allow-readable-mark` as `allow_readable`."""

    def decorate(command: Any) -> Any:
        option = click.option(name, "mark_path", type=FILE, required=required, help=help)
        return option(allow_readable_option(command))

    return decorate


def allow_readable_option(command: Any) -> Any:
    """Adds `--allow-readable-mark` as `allow_readable`."""
    return click.option(
        "--allow-readable-mark", "allow_readable", is_flag=True, help="Accept a mark file that other users may access."
    )(command)


class Number(click.FloatRange):
    """A finite number within bounds: neither nan, which no bound stops, nor inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; anything else is a usage error."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number.", param, ctx)
        return found


alpha_option = click.option(
    "--alpha",
    type=Number(0, MOST_ALPHA, min_open=True),
    default=1e-3,
    show_default=True,
    help="Level of the verdict; fix it before you look.",
)


def plan_options(command: Any) -> Any:
    """Adds `--plan`, `--plan-only` and `--deviate`, for `make`."""
    return together(
        click.option("--plan", type=FILE, help="File of the plan: written if not there, else it must be this one."),
        click.option("--plan-only", is_flag=True, help="Write the --plan, and do not read the suspect."),
        click.option("--deviate", is_flag=True, help="The --plan may be another: say where this run deviates."),
    )(command)


def make(
    test: Callable[..., R], *arguments: Any, plan: Path | None, plan_only: bool, deviate: bool, **named: Any
) -> R | None:
    """Make a test, under the plan of `plan_options` if there is one; or write the plan, and return None."""
    from verify.lineage.single import plan_test, under_plan

    if plan is None:
        if plan_only or deviate:
            raise UsageError(f"`{'plan_only' if plan_only else 'deviate'}` needs a `plan`", "name its file")
        return test(*arguments, **named)
    if not plan_only:
        return under_plan(test, plan, deviate=deviate)(*arguments, **named)
    fixed = plan_test(test, *arguments, **named)
    fixed.fix(plan)
    as_json = click.get_current_context().params["as_json"]
    show({"out": str(plan), "digest": fixed.digest, "plan": fixed.to_dict()},
         f"Written: {plan}, digest {fixed.digest}. Publish the digest, with a date.", as_json=as_json)  # fmt: skip
    return None


def sampling_options(*, max_new_tokens: int, batch_size: int, greedy: bool = True) -> Callable[[Any], Any]:
    """How answers are drawn, as `watermark.Sampling` names it; greedy: temperature 0 is allowed."""
    least = Number(0, min_open=not greedy)
    heat = "Of the softmax; 0: always the likeliest token." if greedy else "Of the softmax."
    return together(
        click.option(
            "--max-new-tokens", type=click.IntRange(1), default=max_new_tokens, show_default=True,
            help="Tokens of an answer, at most.",
        ),
        click.option("--temperature", type=least, default=1.0, show_default=True, help=heat),
        click.option(
            "--top-p", type=Number(0, 1, min_open=True), default=1.0, show_default=True,
            help="Draw from the likeliest tokens that have this probability together.",
        ),
        click.option(
            "--top-k", type=click.IntRange(0), default=0, show_default=True,
            help="Draw from this many of the likeliest tokens; 0: from all.",
        ),
        click.option(
            "--batch-size", type=click.IntRange(1), default=batch_size, show_default=True, help="Prompts in one batch."
        ),
        seed_option,
        click.option(
            "--chat/--no-chat", default=True, show_default=True, help="Use the tokenizer's chat template, if any."
        ),
        click.option(
            "--repeats",
            type=click.Choice(["mark", "once"]),
            default="mark",
            show_default=True,
            help="once: mark a context only where it comes first in an answer and its prompt. "
            "A student then shows little of it.",
        ),
    )  # fmt: skip


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order in which `--help` shows them."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of every draw that is not keyed."
)
price_options = together(
    click.option("--budget-usd", type=Number(0, min_open=True), help="US dollars to spend at most, at these prices."),
    click.option("--price-in", type=Number(0), help="US dollars for a million prompt tokens."),
    click.option("--price-out", type=Number(0), help="US dollars for a million answer tokens."),
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


identity_options = together(
    click.option("--identity", help="Who should have signed it by Sigstore: an e-mail address, or the URI of a job."),
    click.option("--issuer", help="The address of the OpenID provider that should have confirmed the identity."),
    click.option(
        "--trust-config", type=FILE, help="Whom to trust for that: a file, or `public` (Sigstore's own instance)."
    ),
)
tsa_option = click.option(
    "--tsa",
    type=FILE,
    help="The timestamp authority's root certificate, after those between (PEM), to check the time.",
)


def result_options(*verdicts: str) -> Callable[[Any], Any]:
    """Adds `--fail-on VERDICT` and `--json`, and shows the result that the command returns.

    verdicts: what `--fail-on` may name; none: those of a test for a mark.
    """

    def decorate(command: Any) -> Any:
        @wraps(command)
        def run(*arguments: Any, fail_on: str | None, as_json: bool, **options: Any) -> None:
            result: Shown | None = command(*arguments, **options)
            if result is None:
                return
            show(result.to_dict(), result.to_parts(), as_json=as_json)
            if fail_on == result.verdict:
                click.get_current_context().exit(3)

        choice = click.Choice(verdicts or (CARRIES, INSUFFICIENT, NO_VERDICT))
        return click.option("--fail-on", type=choice, help="Exit with status 3 if this is the verdict.")(
            json_option(run)
        )

    return decorate


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
    """Any result."""

    @property
    def verdict(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...

    def to_parts(self) -> list[Part]: ...


def show(found: dict[str, Any], parts: Iterable[Part] | str, *, as_json: bool) -> None:
    """Print what was found on stdout: for a program, or for a person, in parts or one sentence."""
    if as_json:
        print_json(found)
    else:
        say(parts)


def say(parts: Iterable[Part] | str, *, stderr: bool = False) -> None:
    """Print for a person: on a terminal as wide as the window, elsewhere as plain text."""
    from verify.cli.terminal import console, draw

    said = [Paragraph(parts, whole=True)] if isinstance(parts, str) else list(parts)
    if console(stderr=stderr).is_terminal:
        draw((in_words(part, in_cli_words) for part in said), stderr=stderr)
    else:
        _write(in_cli_words(plain(said)), stderr=stderr)


def _write(text: str, *, stderr: bool = False) -> None:
    """Raises OSError, of a stream that has a name in it."""
    try:
        click.echo(text, err=stderr)
    except OSError as error:
        error.filename = "standard error" if stderr else "standard output"
        raise


def print_json(value: dict[str, Any]) -> None:
    """One object on stdout. What a terminal or the encoding of stdout cannot show is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    encoding = sys.stdout.encoding or "utf-8"
    shown = text.replace("\n", "").isprintable() and text.encode(encoding, "replace").decode(encoding) == text
    _write(text if shown else json.dumps(value, indent=2))


def can_redraw() -> bool:
    """Whether stderr is a terminal that can draw a line anew."""
    return (
        sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    )


@contextmanager
def progress(what: str, unit: str = "") -> Iterator[Progress]:
    """A line on stderr, only if that is a terminal. Yields `update(done, total)`; total None: unknown."""
    if not can_redraw():
        yield silent
        return
    from verify.cli.bars import bars

    with bars() as shown, shown.stage(in_cli_words(what), unit) as update:
        yield update
