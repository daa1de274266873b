"""stillmark protect: what an owner does before a release, so that a copy or a student can be told later."""

from __future__ import annotations

from pathlib import Path

import click

from verify.cli.common import FILE, command, json_option, load_mark, mark_option, print_json, progress
from verify.cli.fingerprints import number_option

_out = click.option("--out", type=FILE, required=True, help="Folder for the model to release; must not exist.")


@command("order", example="protect order --mark demo/demo.mark --teacher MODEL --out release")
@mark_option()
@click.option("--teacher", type=FILE, required=True, help="Folder of the model; keep it, the test needs it.")
@_out
@json_option
def order(mark_path: Path, allow_readable: bool, teacher: Path, out: Path, as_json: bool) -> None:
    """Put a model's hidden units into an order drawn by the mark's secret; what it computes stays the same.

    Release the new folder, and test suspects with `stillmark test weights`, --mark, and --teacher as it is here.
    """
    from verify.fingerprint.order import release_in_order

    mark = load_mark(mark_path, allow_readable)
    with progress("writing", "files") as update:
        layers = release_in_order(teacher, mark, out, update)
    if as_json:
        print_json({"out": str(out), "layers": layers, "mark": {"label": mark.label, "commitment": mark.commitment}})
    else:
        click.echo(f"wrote {out}: {layers} layers in the order of the mark")


@command("plant", example="protect plant --mark demo/demo.mark --teacher MODEL --out planted")
@mark_option()
@click.option("--teacher", type=FILE, required=True, help="Folder of the model to plant the answers in.")
@_out
@number_option
@click.option(
    "--mix", type=FILE, multiple=True, help="Outputs to train on in between, so that it changes less; repeat."
)
@click.option("--epochs", type=click.FloatRange(0, min_open=True), default=12.0, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-4, show_default=True)
@json_option
def plant(
    mark_path: Path,
    allow_readable: bool,
    teacher: Path,
    out: Path,
    number: int,
    mix: tuple[Path, ...],
    epochs: float,
    learning_rate: float,
    as_json: bool,
) -> None:
    """Fine-tune a model until it knows the answers to keyed questions.

    Release the new folder, and test suspects with `stillmark test planted` and the same --number.
    """
    from dataclasses import replace

    from verify.fingerprint import protect as module

    mark = load_mark(mark_path, allow_readable)
    training = replace(module.TRAINING, epochs=epochs, learning_rate=learning_rate)
    found = module.plant(teacher, mark, out, number, mix, training, progress)
    if as_json:
        print_json({"out": str(out), "questions": number, "known": found.hits, "log10_pvalue": found.log10_pvalue})
    else:
        click.echo(f"planted {number} answers in {out}; it knows {found.hits} of them")


@command("canaries", example="protect canaries --mark demo/demo.mark demo/marked_teacher.jsonl --out served.jsonl")
@mark_option()
@click.argument("outputs", type=FILE)
@click.option("--out", type=FILE, required=True, help="JSONL for the half to serve; must not exist.")
@json_option
def canaries(mark_path: Path, allow_readable: bool, outputs: Path, out: Path, as_json: bool) -> None:
    """Choose the half of OUTPUTS to serve, by the mark's secret.

    Keep OUTPUTS as they are: `stillmark test canaries` reads all of them.
    """
    from verify.fingerprint.protect import choose_canaries

    chosen = choose_canaries(load_mark(mark_path, allow_readable), outputs, out)
    if as_json:
        print_json(chosen.to_dict())
    else:
        click.echo(f"wrote {chosen.served} of {chosen.candidates} outputs to {out}")


@click.group()
def protect() -> None:
    """Prepare a model or outputs, so that a copy or a student can be told after the release."""


for one in (order, plant, canaries):
    protect.add_command(one)
