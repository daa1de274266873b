"""stillmark quality: what a mark costs, and what tests will see of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from verify.cli.common import FILE, Number, command, json_option, mark_option, progress, sampling_options, show
from watermark import Mark

EXAMPLE = """\
quality --model MODEL --mark demo/demo.mark --prompts demo/prompts.jsonl --number 4 --answers 2 --max-new-tokens 24"""


@command("quality", example=EXAMPLE)
@click.option("--model", type=FILE, required=True, help="Folder of a causal LM and its tokenizer.")
@mark_option()
@click.option("--prompts", type=FILE, help="JSONL of prompts [default: questions of the package].")
@click.option("--number", type=click.IntRange(1), help="Use the first prompts [default: all; 16 of the package's].")
@click.option("--answers", type=click.IntRange(2), default=8, show_default=True,
              help="To each prompt, of each key, with its mark and without.")  # fmt: skip
@click.option("--keys", type=click.IntRange(2), default=8, show_default=True, help="The mark's own and children of it.")
@click.option("--margin", type=Number(0, 1, min_open=True, max_open=True), default=0.02, show_default=True,
              help="Relative difference of perplexities that counts as none.")  # fmt: skip
@click.option("--out", type=FILE, help="Folder to keep the answers in; a killed run goes on from here.")
@sampling_options(max_new_tokens=64, batch_size=64, greedy=False)
@click.option("--alpha", type=Number(0, 1, min_open=True, max_open=True), default=1e-3, show_default=True,
              help="Level of later tests for the mark.")  # fmt: skip
@json_option
def quality(
    model: Path,
    mark: Mark,
    prompts: Path | None,
    number: int | None,
    answers: int,
    keys: int,
    margin: float,
    out: Path | None,
    alpha: float,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Say what a mark costs a model's answers, and what tests will see of it on these prompts.

    The model answers each prompt with the mark, with children of it, and as often without any: the interval is over
    the keys, so that it says what the scheme costs. For each measure the difference is shown; for perplexity also
    whether it is shown to be less than --margin (TOST).

    Do not choose among keys by such figures. Text that does not depend on a mark leans towards a key that was chosen
    for such text, and the p-values of later tests are then wrong.
    """
    from verify.planning.quality import quality
    from watermark.generation import Sampling

    found = quality(
        model, mark, prompts, number=number, answers=answers, keys=keys, sampling=Sampling(**sampling), margin=margin,
        alpha=alpha, out=out, progress=progress,
    )  # fmt: skip
    show(found.to_dict(), found.to_parts(), as_json=as_json)
