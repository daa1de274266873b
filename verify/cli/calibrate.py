"""stillmark calibrate: how often the test of text errs where there is nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from verify.cli.common import (
    FILE,
    alpha_option,
    columns_option,
    command,
    mark_option,
    progress,
    result_options,
    skip_bad_option,
    tokenizer_option,
    unmarked_prompts_option,
)
from watermark import Mark

if TYPE_CHECKING:
    from verify.evidence.calibrate import Calibration


@command("calibrate", example="calibrate demo/unmarked_teacher.jsonl --mark demo/demo.mark --keys 100")
@mark_option()
@click.argument("texts", type=FILE, nargs=-1, required=True)
@click.option("--keys", type=click.IntRange(100), default=1000, show_default=True, help="Keys at random, on each file.")
@unmarked_prompts_option
@tokenizer_option
@columns_option
@alpha_option
@skip_bad_option
@result_options("sound", "not sound")
def calibrate(mark: Mark, texts: tuple[Path, ...], **options: Any) -> Calibration:
    """Say how often the test of text errs on text that cannot carry the mark.

    TEXTS are files of human text, and of outputs of models that are surely innocent. The binomial test is made on each
    under many keys at random, and under the mark's own. *Not sound* means that one of them fits where none should, and
    it is said which rule to look at.
    """
    from verify import calibrate

    return calibrate(mark, texts, progress=progress, **options)
