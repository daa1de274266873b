"""stillmark evidence: a plan that is fixed beforehand, and evidence that others can check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from verify.cli.common import FILE, Command, json_option, show
from verify.cli.verify import planned_options
from verify.display import Paragraph, Rows


@click.group()
def evidence() -> None:
    """Fix a plan beforehand, and bundle the evidence so that others can check it."""


@evidence.command(
    "plan", cls=Command, example="evidence plan demo/marked_student --mark demo/demo.mark --out plan.json"
)
@planned_options
@click.option("--out", type=FILE, required=True, help="Where to write the plan; a file that is there must hold it.")
@json_option
def plan(what: Any, out: Path, as_json: bool, **options: Any) -> None:
    """Write what `stillmark verify` would test with these options, and at which level, before anybody looks.

    The suspect is recognised, and not read. Publish the digest with a date that others can confirm. Then run
    `stillmark verify` with the same options and --plan.
    """
    from verify import make_plan

    made = make_plan(what, **options)
    made.fix(out)
    rows = {"tests": ", ".join(made.lines), "alpha": f"{made.alpha:g}, over all tests (Holm)", "digest": made.digest}
    shown = [Paragraph(f"Written: {out}", whole=True), Rows(rows), Paragraph("Publish the digest, with a date.")]
    show({"out": str(out), "digest": made.digest, "plan": made.to_dict()}, shown, as_json=as_json)
