"""stillmark calibrate: how often the tests for a mark err where there is nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from verify.cli.common import (
    FILE,
    alpha_option,
    batch_size_option,
    columns_option,
    command,
    mark_option,
    progress,
    result_options,
    skip_bad_option,
    tokenizer_option,
    unmarked_probes_option,
    unmarked_prompts_option,
)
from watermark import Mark

if TYPE_CHECKING:
    from verify.evidence.calibration import Calibration


@command("calibrate", example="calibrate demo/unmarked_teacher.jsonl --mark demo/demo.mark --keys 100")
@mark_option()
@click.argument("texts", type=FILE, nargs=-1)
@click.option(
    "--suspects",
    type=FILE,
    multiple=True,
    help="Folder of an innocent model, or its recorded log probabilities; repeat.",
)
@click.option("--reference", type=FILE, help="Of the suspects: a model that does not depend on the secret.")
@click.option("--probes", type=FILE, multiple=True, help="Texts to read along; repeat [default: those of the package].")
@unmarked_probes_option
@click.option("--record", type=FILE, help="Folder to keep what was read of the suspects in, and to resume from.")
@click.option("--keys", type=click.IntRange(100), default=1000, show_default=True, help="Decoy keys, on each of them.")
@unmarked_prompts_option
@tokenizer_option
@columns_option
@batch_size_option
@alpha_option
@skip_bad_option
@click.option("--out", type=FILE, help="Where to write the result, for `evidence bundle` and `report`.")
@result_options("sound", "not sound")
def calibrate(
    mark: Mark,
    texts: tuple[Path, ...],
    probes: tuple[Path, ...],
    unmarked_probes: bool,
    out: Path | None,
    **options: Any,
) -> Calibration:
    """Say how often the tests for a mark err on what cannot carry it.

    TEXTS are files of human text, and of outputs of models that are surely innocent: the binomial test is made on each.
    --suspects are innocent models: the test of log probabilities is made on each, along the probes. Both are made
    under many decoy keys and under the mark's own. *Not sound* means that one of them fits where none should, and it is
    said which rule to look at.
    """
    from verify import calibrate

    found = calibrate(
        mark, texts, probes=probes or None, unmarked_probes=unmarked_probes or None, progress=progress, **options
    )
    if out is not None:
        found.save(out)
    return found
