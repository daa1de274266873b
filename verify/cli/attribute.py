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
    mark_option,
    progress,
    result_options,
    show,
    skip_bad_option,
    tokenizer_option,
    unmarked_prompts_option,
)
from verify.results import NO_VERDICT, Result
from watermark import Mark, UsageError


@command("attribute", example="attribute --mark demo/demo.mark --labels customers.txt demo/marked_teacher.jsonl")
@mark_option()
@click.option("--labels", type=FILE, required=True, help="Text file: a label a line.")
@click.option(
    "--plan", type=FILE, help="File of the plan: written if it is not there; without OUTPUTS nothing more is done."
)
@click.option("--plan-only", is_flag=True, help="Write the --plan, and do not read the OUTPUTS.")
@click.option("--deviate", is_flag=True, help="The --plan may be another: say where this run deviates.")
@click.argument("outputs", type=FILE, nargs=-1)
@unmarked_prompts_option
@tokenizer_option
@columns_option
@alpha_option
@skip_bad_option
@result_options("attributed", "none", "ambiguous", NO_VERDICT)
def attribute(
    mark: Mark,
    labels: Path,
    plan: Path | None,
    plan_only: bool,
    deviate: bool,
    outputs: tuple[Path, ...],
    **options: Any,
) -> Result | None:
    """Find the customers (months, ...) whose marked outputs a suspect's text shows.

    --mark names the parent, of which each label's mark was derived (`stillmark mark derive`). OUTPUTS are records as
    in `stillmark test text`. The chance of naming any wrong label is at most alpha, over all labels. The answer may be
    a set of labels, nobody (`none`), or `ambiguous`: some label's mark is there, and it cannot be told whose.

    The p-values hold only if the labels were fixed before anybody looked at the suspect. --plan without OUTPUTS writes
    down which they are; give it a date that others can confirm, and name it again with OUTPUTS.
    """
    import verify

    if outputs and not plan_only:
        return verify.attribute(mark, labels, outputs, plan=plan, deviate=deviate, progress=progress, **options)
    if plan is None:
        if plan_only:
            raise UsageError("`plan_only` needs a `plan`", "name its file")
        raise UsageError("there are no OUTPUTS to test", "name files of outputs, or a plan to write with --plan")
    fixed = verify.plan_labels(mark, labels, plan, unmarked_prompts=options["unmarked_prompts"], alpha=options["alpha"])
    as_json = click.get_current_context().params["as_json"]
    written = f"Written: {plan}, digest {fixed.digest}. Publish the digest, with a date."
    show({"out": str(plan), "digest": fixed.digest, "plan": fixed.to_dict()}, written, as_json=as_json)
    return None
