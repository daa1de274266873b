"""stillmark mark: make, show, publish, derive and check marks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from verify.cli.common import FILE, Command, allow_readable_option, json_option, print_json, say
from verify.cli.common import show as show_found
from verify.display import Rows
from verify.profiles import ENGINES, read_profile
from verify.results import plural
from watermark import Mark, MarkError, UsageError
from watermark.keyfile import CARD_FORMAT, parse_secret, read_json
from watermark.schemes import DEFAULT, NAMES, Scheme, kind_of


@click.group()
def mark() -> None:
    """Make a mark, and what belongs to it: its card, its children."""


@mark.command("new", cls=Command, example="mark new --out teacher.mark --tokenizer MODEL --label my-teacher")
@click.option("--out", type=FILE, required=True, help="Where to write the mark (mode 0600); must not exist.")
@click.option(
    "--scheme",
    type=click.Choice(NAMES),
    default=DEFAULT.name,
    show_default=True,
    help="A green list works at any temperature; a tournament changes no probability on average over keys.",
)
@click.option("--gamma", type=float, help="Green list: fraction of the vocabulary that is green [default: 0.25].")
@click.option("--delta", type=float, help="Green list: what a green token's logit is raised by [default: 1.0].")
@click.option("--layers", type=int, help="Tournament: number of layers, 1-8; more are stronger [default: 4].")
@click.option("--width", type=int, default=1, show_default=True, help="Preceding tokens that key the mark, 0-7.")
@click.option("--tokenizer", type=FILE, help="Folder of the teacher's tokenizer: fixes vocabulary and special tokens.")
@click.option("--label", default="", help="Free text, kept with the mark.")
@click.option("--secret-stdin", is_flag=True, help="Read the secret, 64 hex characters, from standard input.")
@json_option
def new(
    out: Path,
    scheme: str,
    gamma: float | None,
    delta: float | None,
    layers: int | None,
    width: int,
    tokenizer: Path | None,
    label: str,
    secret_stdin: bool,
    as_json: bool,
) -> None:
    """Draw a secret and write a new mark."""
    secret = parse_secret(sys.stdin.buffer.read()) if secret_stdin else None
    named = {
        name: value for name, value in (("gamma", gamma), ("delta", delta), ("layers", layers)) if value is not None
    }
    made = Mark.new(tokenizer, scheme=_scheme(scheme, named), width=width, label=label, secret=secret)
    made.save(out)
    if gamma is not None and (rounded := made.scheme.rate) != gamma:
        say(f"gamma {gamma} was rounded to {rounded}, a multiple of 1/65536", stderr=True)
    if tokenizer is None:
        say("No --tokenizer: special tokens will be biased and scored like any other.", stderr=True)
    _print(made, as_json, f"wrote {out}: keep it as you keep a private key")


@mark.command("show", cls=Command, example="mark show demo/demo.mark")
@click.argument("file", type=FILE)
@allow_readable_option
@json_option
def show(file: Path, allow_readable: bool, as_json: bool) -> None:
    """Print a mark's or a card's parameters; never the secret."""
    body = read_json(file, "mark file or card")
    if body.get("format") == CARD_FORMAT:
        _print_card(body, as_json)
    else:
        _print(Mark.load(file, allow_readable=allow_readable), as_json)


@mark.command("publish", cls=Command, example="mark publish demo/demo.mark --out demo.card")
@click.argument("file", type=FILE)
@click.option("--out", type=FILE, required=True, help="Where to write the card; must not exist.")
@allow_readable_option
@json_option
def publish(file: Path, out: Path, allow_readable: bool, as_json: bool) -> None:
    """Write the card: everything but the secret, with a commitment to the whole.

    Publish it, with a date that others can confirm, before you look at a suspect.
    """
    loaded = Mark.load(file, allow_readable=allow_readable)
    loaded.publish(out)
    _print(loaded, as_json, f"wrote {out}")


@mark.command("derive", cls=Command, example="mark derive demo/demo.mark --label customer-17 --out customer-17.mark")
@click.argument("file", type=FILE)
@click.option("--label", required=True, help="Whom or what the child is for: a customer, a month, ...")
@click.option("--out", type=FILE, required=True, help="Where to write the child mark (mode 0600); must not exist.")
@click.option("--delta", type=float, help="Green list: what its green tokens are raised by [default: as the parent's].")
@allow_readable_option
@json_option
def derive(file: Path, label: str, out: Path, delta: float | None, allow_readable: bool, as_json: bool) -> None:
    """Write the child mark for a label: same parameters (perhaps another delta), a secret of its own."""
    if not label:
        raise MarkError("a label is one line of text, not none", "name whom or what the child is for")
    parent = Mark.load(file, allow_readable=allow_readable)
    other = {} if delta is None else {"delta": delta}
    child = parent.child(label, _scheme(parent.scheme.name, {**parent.scheme.parameters, **other}))
    child.save(out)
    _print(child, as_json, f"wrote {out}: keep it as you keep a private key")


@mark.command(
    "check", cls=Command, example="mark publish demo/demo.mark --out demo.card\nmark check demo.card demo/demo.mark"
)
@click.argument("card", type=FILE)
@click.argument("file", type=FILE)
@allow_readable_option
@json_option
def check(card: Path, file: Path, allow_readable: bool, as_json: bool) -> None:
    """Whether a card belongs to a mark: exit status 0 if so, 1 if not."""
    body = read_json(card, "card")
    if body.get("format") != CARD_FORMAT:
        raise MarkError(f"{card}: not a card", "name the card first, then the mark: mark check CARD FILE")
    differs = Mark.load(file, allow_readable=allow_readable).matches(body)
    if as_json:
        print_json({"match": not differs, "differs": differs})
    if differs:
        raise MarkError(
            f"{card} does not belong to {file}: they differ in {', '.join(differs)}",
            "a card belongs to one mark only; was it made from another, or from a child?",
        )
    if not as_json:
        say(f"{card} belongs to {file}")


@mark.command(
    "import",
    cls=Command,
    example="mark import --from vllm watermark.json --tokenizer MODEL --out served.mark",
)
@click.argument("config", type=FILE)
@click.option("--from", "engine", type=click.Choice(ENGINES), required=True, help="The engine that makes the mark.")
@click.option("--out", type=FILE, required=True, help="Where to write the mark (mode 0600); must not exist.")
@click.option("--tokenizer", type=FILE, help="Folder of the model that is served, or of its tokenizer.")
@click.option("--vocabulary", type=int, help="Width of the model's logits [default: as in its config.json].")
@click.option("--label", default="", help="Free text, kept with the mark.")
@json_option
def import_(
    config: Path, engine: str, out: Path, tokenizer: Path | None, vocabulary: int | None, label: str, as_json: bool
) -> None:
    """Make a mark file of another engine's mark, to test for it here; the engine itself goes on embedding it.

    CONFIG is JSON, as the engine takes it: a generation config or its watermarking_config (transformers), what follows
    --watermark-config (vllm), the file of --watermark-config (sglang), the arguments of the logits processor (synthid,
    kgw). It holds the key: handle it as the mark.
    """
    profile = read_profile(engine, config, tokenizer, label=label, vocabulary=vocabulary)
    profile.mark.save(out)
    for note in profile.notes:
        say(note, stderr=True)
    if tokenizer is None:
        say("No --tokenizer: special tokens will be scored like any other.", stderr=True)
    _print(profile.mark, as_json, f"wrote {out}: keep it as you keep a private key")


def _scheme(name: str, parameters: dict[str, Any]) -> Scheme:
    """The scheme of this name with some of its parameters. Raises UsageError for a parameter of another scheme."""
    kind = kind_of(name)
    assert kind is not None
    if wrong := sorted(parameters.keys() - kind.FIELDS.keys()):
        raise UsageError(f"a {name} has no --{wrong[0]}", f"it has {', '.join(f'--{field}' for field in kind.FIELDS)}")
    return kind(**parameters)


def _print(shown: Mark, as_json: bool, message: str | None = None) -> None:
    if message:
        say(message, stderr=True)
    _print_card(shown.card(), as_json)


def _print_card(card: dict[str, Any], as_json: bool) -> None:
    rows = {name: "-" if value in (None, "") else str(value) for name, value in card.items()}
    if isinstance(exempt := card.get("exempt"), list):
        rows["exempt"] = plural(len(exempt), "special id") if exempt else "none"
    show_found(card, [Rows(rows, width=16, indent=0)], as_json=as_json)
