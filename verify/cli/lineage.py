"""stillmark lineage: copied, distilled, both, unrelated so far as the access can see, or cannot tell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from verify.cli.common import (
    FILE,
    alpha_option,
    json_option,
    load_mark,
    make_record,
    mark_option,
    print_json,
    progress,
)
from watermark.tokenizers import quiet_transformers

if TYPE_CHECKING:
    from verify.lineage.verdict import Lineage

_VERDICTS = ("copied", "distilled", "copied and distilled", "unrelated so far as this access can see", "cannot tell")


@click.command()
@click.option("--teacher", type=FILE, required=True, help="Folder of the teacher's weights.")
@click.option("--suspect", required=True, help="Folder of the suspect's weights, or http(s)://... of its endpoint.")
@mark_option(required=False)
@click.option("--probes", type=FILE, help="Texts to read along for the mark; see `stillmark probes`.")
@click.option("--unmarked-probes", is_flag=True, help="The probes cannot carry the mark.")
@click.option("--unmarked-prompts", is_flag=True, help="The prompts, for an endpoint, cannot carry the mark.")
@click.option("--reference", type=FILE, help="Folder of a model that has nothing to do with the secret.")
@click.option("--controls", type=FILE, multiple=True, help="An independent model to compare with; repeat.")
@click.option("--prompts", type=FILE, help="What to ask: for agreement with --controls, or of an endpoint.")
@click.option("--base", type=FILE, help="Folder of the suspect's own base, for agreement.")
@click.option("--planted", type=click.IntRange(1), help="The teacher carries so many planted answers: ask them.")
@click.option("--canaries", type=FILE, help="All candidates of `fingerprint canaries choose`.")
@click.option("--ordered", is_flag=True, help="The teacher was released in the mark's order; --teacher is from before.")
@click.option("--plan", "plan_path", type=FILE, help="The plan: written if not there, else it must be this one.")
@click.option("--record", type=FILE, help="Folder to keep what was read in, and to resume from.")
@click.option("--model", help="The name that the endpoint knows the suspect by.")
@click.option("--budget-tokens", type=click.IntRange(1), default=50_000, show_default=True, help="For an endpoint.")
@click.option("--seed", type=int, default=0, show_default=True)
@alpha_option
@click.option("--fail-on", type=click.Choice(_VERDICTS), help="Exit with status 3 if this is the verdict.")
@json_option
@click.pass_context
def lineage(
    ctx: click.Context,
    teacher: Path,
    suspect: str,
    mark_path: Path | None,
    allow_readable: bool,
    probes: Path | None,
    unmarked_probes: bool,
    unmarked_prompts: bool,
    reference: Path | None,
    controls: tuple[Path, ...],
    prompts: Path | None,
    base: Path | None,
    planted: int | None,
    canaries: Path | None,
    ordered: bool,
    plan_path: Path | None,
    record: Path | None,
    model: str | None,
    budget_tokens: int,
    seed: int,
    alpha: float,
    fail_on: str | None,
    as_json: bool,
) -> None:
    """Say what happened to the teacher, by every test that the access allows.

    What will be tested is fixed by the options, before the suspect is read: with --plan FILE the plan is written first,
    or must be the one that was written before. The p-values are adjusted by Holm's method over all lines.
    """
    from verify.lineage import run as at_hand
    from verify.lineage.verdict import conclude

    url = suspect.startswith(("http://", "https://"))
    if (planted or canaries or ordered) and mark_path is None:
        raise click.UsageError("--planted, --canaries and --ordered need the --mark whose secret chose")
    if url and (model is None or record is None):
        raise click.UsageError("an endpoint needs --model, and --record for the log of its answers")
    if mark_path is not None and (prompts if url else probes) is None and not (planted or canaries or ordered):
        raise click.UsageError("the mark is looked for with --prompts (an endpoint) or --probes (weights)")
    if (controls and not prompts) or (prompts and not controls and not url):
        raise click.UsageError("agreement needs both --controls and --prompts")
    mark = load_mark(mark_path, allow_readable) if mark_path else None
    quiet_transformers()
    access = at_hand.Access(
        teacher, suspect, mark, probes, reference, controls, prompts, base, planted, canaries,
        unmarked_prompts if url else unmarked_probes, ordered, model, budget_tokens, seed, record,
    )  # fmt: skip
    plan = access.plan(alpha)
    if plan_path is not None:
        plan.fix(plan_path)
    make_record(record)
    tests = access.tests(alpha)
    found = conclude(str(teacher), access.shown, plan, at_hand.run(plan, tests, progress))
    print_json(found.to_dict()) if as_json else _print(found)
    if fail_on == found.verdict:
        ctx.exit(3)


def _print(found: Lineage) -> None:
    from verify.lineage.verdict import breaks

    click.secho(found.verdict, bold=True)
    click.echo(f"  {'line':24} {'log10 p':>12} {'adjusted':>12}")
    for line in found.lines:
        if line.result is None:
            click.echo(f"  {line.name:24} not tested: {line.unavailable}")
        else:
            numbers = f"{line.result.log10_pvalue:12.2f} {line.log10_adjusted:12.2f}"
            click.echo(f"  {line.name:24} {numbers}   {'stands' if line.positive(found.plan.alpha) else ''}")
    click.echo(f"\n  alpha {found.plan.alpha:g} over all lines (Holm); plan {found.plan.digest[:16]}...\n")
    for reason in found.reasons:
        click.echo(reason)
    for line in found.lines:
        if line.result is not None and line.positive(found.plan.alpha):
            click.echo(f"\n{line.name}: {line.result.randomness} {breaks(line.result)}")
        for warning in line.result.warnings if line.result is not None else ():
            click.echo(f"Note: {line.name}: {warning}", err=True)
