"""stillmark verify: what happened to the teacher?"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from verify.cli.common import (
    FILE,
    alpha_option,
    columns_option,
    command,
    marks_option,
    price_options,
    progress,
    reference_option,
    result_options,
    seed_option,
    skip_bad_option,
    together,
    tokenizer_option,
    unmarked_probes_option,
    unmarked_prompts_option,
)

if TYPE_CHECKING:
    from verify.lineage.verdict import Verdict

VERDICTS = (
    "copied",
    "distilled",
    "relays the teacher",
    "distilled or relayed",
    "copied and distilled",
    "unrelated as far as seen",
    "cannot tell",
)


def planned_options(run: Callable[..., Any]) -> Callable[..., Any]:
    """Adds SUSPECT and the options from which the plan follows, with the suspect and its probes as they were named."""

    @wraps(run)
    def ready(
        what: tuple[str, ...],
        probes: tuple[Path, ...],
        unmarked_probes: bool,
        unmarked_prompts: bool,
        **options: Any,
    ) -> Any:
        return run(
            what[0] if len(what) == 1 else what,
            probes=probes or None,
            unmarked_probes=unmarked_probes or None,
            unmarked_prompts=unmarked_prompts or None,
            **options,
        )

    made: Callable[..., Any] = _planned(ready)
    return made


_planned = together(
    click.argument("what", metavar="SUSPECT...", nargs=-1, required=True),
    marks_option(),
    click.option("--teacher", type=FILE, help="Folder of the teacher's weights, to compare the suspect's with."),
    reference_option,
    click.option("--control", "controls", type=FILE, multiple=True, help="Folder of an unrelated model; repeat."),
    click.option("--base", type=FILE, help="Folder of the suspect's own base, for agreement."),
    click.option("--probes", type=FILE, multiple=True, help="Texts to read along [default: those of the package]."),
    unmarked_probes_option,
    click.option("--prompts", type=FILE, help="What to ask an endpoint [default: those of the package]."),
    unmarked_prompts_option,
    click.option(
        "--planted", type=click.IntRange(1), help="Number of planted answers that the teacher carries: ask them."
    ),
    click.option("--canaries", type=FILE, help="All candidates of `stillmark protect canaries`."),
    click.option(
        "--ordered", is_flag=True, help="The teacher was released in the mark's order; --teacher is from before."
    ),
    click.option("--model", help="The name that an endpoint knows the suspect by [default: the one that it serves]."),
    click.option(
        "--budget-tokens",
        "budget",
        type=click.IntRange(1),
        default=50_000,
        show_default=True,
        help="Tokens that an endpoint may bill for the test for the mark.",
    ),
    price_options,
    tokenizer_option,
    columns_option,
    seed_option,
    alpha_option,
    skip_bad_option,
)


@command("verify", example="verify demo/marked_student --mark demo/demo.mark")
@planned_options
@click.option(
    "--out", type=FILE, help="Folder to keep the plan, what was read (to resume from), result.json and report.html in."
)
@click.option(
    "--confidential", is_flag=True, help="Leave passages of the suspect's text and single pairs out of these."
)
@click.option("--plan", type=FILE, help="File of the plan: written if not there, else it must be this one.")
@click.option("--deviate", is_flag=True, help="The --plan may be another one: say where this run deviates from it.")
@result_options(*VERDICTS)
def verify(what: Any, **options: Any) -> Verdict:
    """Say what happened: was the teacher copied, distilled, both, or neither as far as seen?

    SUSPECT is a folder of weights, the http(s):// address of an endpoint, or files of what it wrote or of its log
    probabilities, any number of them. --mark alone is enough, and may be repeated: each mark is tested for, with its
    own tokenizer. Whatever else you name allows more tests. What is tested follows from the options, before the
    suspect is read, and the p-values are adjusted over all tests. The key of an endpoint is read from OPENAI_API_KEY.
    """
    from verify import suspect

    return suspect(what, progress=progress, **options)
