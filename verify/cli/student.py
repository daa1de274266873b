"""stillmark student: train a positive control."""

from __future__ import annotations

from pathlib import Path

import click

from verify.cli.common import FILE, Number, columns_option, command, json_option, progress, seed_option, show
from verify.progress import on


@command("student", example="student --base MODEL --outputs demo/marked_teacher.jsonl --out student")
@click.option("--base", type=FILE, required=True, help="Folder of the model to start from.")
@click.option("--outputs", type=FILE, required=True, multiple=True, help="Outputs to train on; may be repeated.")
@click.option("--out", type=FILE, required=True, help="Folder for the student; must not exist.")
@click.option("--epochs", type=Number(0, min_open=True), default=1.0, show_default=True,
              help="Times to train on each record.")  # fmt: skip
@click.option("--learning-rate", type=Number(0, min_open=True), default=2e-4, show_default=True,
              help="Learning rate at the start; it falls to 0.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Records in one step.")
@click.option(
    "--max-length",
    type=click.IntRange(2),
    default=1024,
    show_default=True,
    help="Tokens of a record, at most.",
)
@seed_option
@columns_option
@json_option
def student(
    base: Path,
    outputs: tuple[Path, ...],
    out: Path,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    max_length: int,
    seed: int,
    columns: dict[str, str] | None,
    as_json: bool,
) -> None:
    """Train a student on outputs, as somebody who distils a teacher would.

    A student of marked outputs is a positive control: does your mark, at your settings, show in a model
    trained on this much of it? The same command goes on after a kill.
    """
    from verify.planning.student import Training, train_student

    training = Training(epochs, learning_rate, batch_size, max_length, seed)
    with progress(on("training from", base), "steps") as update:
        trained = train_student(base, outputs, out, training, update, columns=columns)
    show(trained.to_dict(), str(trained), as_json=as_json)
