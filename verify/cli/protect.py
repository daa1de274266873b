"""stillmark protect: what an owner does before a release, so that a copy or a student can be told later."""

from __future__ import annotations

from pathlib import Path

import click

from verify.cli.common import FILE, Number, command, json_option, mark_option, progress, show
from verify.cli.fingerprints import number_option
from verify.progress import on
from verify.results import plural
from watermark import Mark

_out = click.option("--out", type=FILE, required=True, help="Folder for the model to release; must not exist.")


@command("order", example="protect order --mark demo/demo.mark --teacher MODEL --out release")
@mark_option()
@click.option("--teacher", type=FILE, required=True, help="Folder of the model; keep it, the test needs it.")
@_out
@json_option
def order(mark: Mark, teacher: Path, out: Path, as_json: bool) -> None:
    """Put a model's hidden units into an order drawn by the mark's secret; what it computes stays the same.

    Release the new folder, and test suspects with `stillmark test weights`, --mark, and --teacher as it is here.
    """
    from verify.fingerprint.order import release_in_order

    with progress(on("putting in order", teacher), "files") as update:
        layers = release_in_order(teacher, mark, out, update)
    found = {"out": str(out), "layers": layers, "mark": {"label": mark.label, "commitment": mark.commitment}}
    show(found, f"wrote {out}: {plural(layers, 'layer')} in the order of the mark", as_json=as_json)


@command("plant", example="protect plant --mark demo/demo.mark --teacher MODEL --out planted")
@mark_option()
@click.option("--teacher", type=FILE, required=True, help="Folder of the model to plant the answers in.")
@_out
@number_option
@click.option(
    "--mix", type=FILE, multiple=True, help="Outputs to train on in between, so that it changes less; repeat."
)
@click.option("--epochs", type=Number(0, min_open=True), default=12.0, show_default=True,
              help="Times to train on each record.")  # fmt: skip
@click.option("--learning-rate", type=Number(0, min_open=True), default=1e-4, show_default=True,
              help="Learning rate at the start; it falls to 0.")  # fmt: skip
@json_option
def plant(
    mark: Mark,
    teacher: Path,
    out: Path,
    number: int,
    mix: tuple[Path, ...],
    epochs: float,
    learning_rate: float,
    as_json: bool,
) -> None:
    """Fine-tune a model until it knows the answers to keyed questions.

    Release the new folder, and test suspects with `stillmark test planted` and the same --number. The same command goes
    on after a kill.
    """
    from dataclasses import replace

    from verify.fingerprint import protect as module

    training = replace(module.TRAINING, epochs=epochs, learning_rate=learning_rate)
    found = module.plant(teacher, mark, out, number, mix, training, progress)
    about = {"out": str(out), "questions": number, "known": found.hits, "log10_pvalue": found.log10_pvalue}
    planted = f"planted {plural(number, 'answer')} in {out}; it knows {found.hits} of them"
    show(about, planted, as_json=as_json)


@command("canaries", example="protect canaries --mark demo/demo.mark demo/marked_teacher.jsonl --out served.jsonl")
@mark_option()
@click.argument("outputs", type=FILE)
@click.option("--out", type=FILE, required=True, help="JSONL for the half to serve; must not exist.")
@json_option
def canaries(mark: Mark, outputs: Path, out: Path, as_json: bool) -> None:
    """Choose the half of OUTPUTS to serve, by the mark's secret.

    Keep OUTPUTS as they are: `stillmark test canaries` reads all of them.
    """
    from verify.fingerprint.protect import choose_canaries

    chosen = choose_canaries(mark, outputs, out, progress)
    written = f"wrote {chosen.served:,} of {plural(chosen.candidates, 'output')} to {out}"
    show(chosen.to_dict(), written, as_json=as_json)


@click.group()
def protect() -> None:
    """Prepare a model or outputs, so that a copy or a student can be told after the release."""


for one in (order, plant, canaries):
    protect.add_command(one)
