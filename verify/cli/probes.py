"""stillmark probes: texts, or single positions, at which a suspect is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from verify.cli.common import (
    FILE,
    command,
    json_option,
    mark_option,
    progress,
    say,
    seed_option,
    show,
    tokenizer_option,
)
from watermark import Mark

EXAMPLE: Final = """\
probes --mark demo/demo.mark --model MODEL --out probes.jsonl
probes --mark demo/demo.mark demo/unmarked_teacher.jsonl --out cut.jsonl"""


@command("probes", example=EXAMPLE)
@mark_option()
@click.argument("texts", type=FILE, nargs=-1)
@click.option("--model", type=FILE, help="Folder of a model that writes the texts: the teacher, without its mark, say.")
@click.option(
    "--number", type=click.IntRange(1, 720), default=100, show_default=True, help="Texts that the model writes."
)
@click.option("--out", type=FILE, required=True, help="JSONL, for the option --probes of other commands.")
@click.option("--length", type=click.IntRange(2), default=128, show_default=True, help="Tokens of a probe.")
@click.option("--context-counts", type=FILE, help="Take the positions whose contexts were emitted most often.")
@click.option(
    "--positions", type=click.IntRange(1), default=300, show_default=True, help="How many, with --context-counts."
)
@tokenizer_option
@seed_option
@json_option
def probes(mark: Mark, texts: tuple[Path, ...], model: Path | None, as_json: bool, **options: Any) -> None:
    """Write probes: texts of your own, or what a --model writes without the mark.

    With --context-counts a probe is a single position, after a context that the teacher emitted often; the best first.
    That is for suspects where every position costs: ask for one token after each prompt.
    """
    from verify.planning.probes import make_probes

    made = make_probes(mark, texts or None, model=model, progress=progress, **options)
    for warning in made.warnings:
        say(f"Note: {warning}", stderr=True)
    show(made.to_dict(), str(made), as_json=as_json)
