"""stillmark attribute: whose outputs were used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from verify.cli.common import (
    FILE,
    alpha_option,
    columns_option,
    command,
    fail_on_option,
    json_option,
    load_mark,
    mark_option,
    progress,
    show,
    skip_bad_option,
    tokenizer_option,
    unmarked_prompts_option,
)
from verify.results import NO_VERDICT


@command("attribute", example="attribute --mark demo/demo.mark --labels customers.txt demo/marked_teacher.jsonl")
@mark_option()
@click.option("--labels", type=FILE, required=True, help="Text file: a label a line.")
@click.argument("outputs", type=FILE, nargs=-1, required=True)
@unmarked_prompts_option
@tokenizer_option
@columns_option
@alpha_option
@skip_bad_option
@fail_on_option("attributed", "none", "ambiguous", NO_VERDICT)
@json_option
def attribute(
    mark_path: Path,
    allow_readable: bool,
    labels: Path,
    outputs: tuple[Path, ...],
    fail_on: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the customers (months, ...) whose marked outputs a suspect's text shows.

    --mark names the parent, of which each label's mark was derived (`stillmark mark derive`). OUTPUTS are records as
    in `stillmark test text`. The chance of naming any wrong label is at most alpha, over all labels. The answer may be
    a set of labels, nobody (`none`), or `ambiguous`: some label's mark is there, and it cannot be told whose.
    """
    import verify

    mark = load_mark(mark_path, allow_readable)
    result = verify.attribute(mark, labels, outputs, progress=progress, **options)
    show(result, as_json=as_json, fail_on=fail_on)
