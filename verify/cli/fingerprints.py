"""stillmark test weights, agreement, planted, canaries: tests that need no mark in the suspect's text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from verify.cli.common import (
    FILE,
    Number,
    alpha_option,
    batch_size_option,
    command,
    make,
    mark_option,
    plan_options,
    progress,
    result_options,
    seed_option,
    show,
)
from verify.fingerprint import AGREES, DEPENDENT, KNOWS, MATCHED, SAW
from verify.results import INSUFFICIENT, MOST_ALPHA, NO_VERDICT, Result, plural
from watermark import Mark

if TYPE_CHECKING:
    from verify import Endpoint
    from verify.fingerprint.comparison import WeightsResult

_teacher = click.option("--teacher", type=FILE, required=True, multiple=True, help="Folder of the teacher's weights.")
_suspect = click.option("--suspect", type=FILE, required=True, help="Folder of the suspect's weights.")
_asked = click.option("--suspect", help="Folder of the suspect's weights, or the http(s):// address of an endpoint.")
_model = click.option(
    "--model", help="The name that an endpoint knows the suspect by [default: the one that it serves]."
)
_record = click.option("--record", type=FILE, help="Folder to keep what was read in, and to resume from.")
number_option = click.option(
    "--number", type=click.IntRange(1), default=64, show_default=True, help="Number of keyed questions."
)


@command("weights", example="test weights --teacher MODEL --suspect demo/marked_student")
@_teacher
@_suspect
@click.option("--control", "controls", type=FILE, multiple=True, help="Folder of an independent model; repeat.")
@mark_option(required=False)
@seed_option
@plan_options
@alpha_option
@result_options(DEPENDENT, MATCHED, INSUFFICIENT, NO_VERDICT)
def weights(teacher: tuple[Path, ...], suspect: Path, mark: Mark | None, **options: Any) -> WeightsResult | None:
    """Test whether two models' weights are independent, layer by layer, from safetensors.

    Exact: hidden units are matched, and those that keep their index are counted. With --mark the teacher was released
    in the mark's order (`stillmark protect order`), and --teacher is the model from before: then the p-value rests on
    the secret alone, and a common parent does not spoil it.

    Calibrated: a statistic that survives shuffled units, ranked among pairs of small independent models. A --control
    that is as like the teacher takes this evidence away.

    The verdict looks at both tests, each at half of alpha. With --mark it looks at the exact test alone, for siblings
    have like units too.
    """
    from verify import weights_test

    return make(weights_test, teacher, suspect, order=mark, progress=progress, **options)


@command(
    "agreement",
    example="test agreement --teacher MODEL --suspect demo/marked_student --control demo/unmarked_student",
)
@_teacher
@_asked
@_model
@click.option("--answers", type=FILE, help="JSONL of the suspect's answers: `id` and `top`, tokens as text.")
@click.option("--control", "controls", type=FILE, multiple=True, required=True, help="Folder of such a model; repeat.")
@click.option("--base", type=FILE, help="Folder of the suspect's own base: compares what it gained over that.")
@click.option("--prompts", type=FILE, help='JSONL: {"id": ..., "prompt": "..."} [default: those of the package].')
@click.option("--top", type=click.IntRange(1, 20), default=1, show_default=True, help="Likeliest tokens to compare.")
@click.option("--chat", is_flag=True, help="Prompts are messages: put them through each model's chat template.")
@_record
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Prompts in a forward pass.")
@plan_options
@click.option(
    "--alpha",
    type=Number(0, MOST_ALPHA, min_open=True),
    default=0.05,
    show_default=True,
    help="Level of the verdict; fix it before you look.",
)
@result_options(AGREES, INSUFFICIENT)
def agreement(
    teacher: tuple[Path, ...],
    suspect: str | None,
    model: str | None,
    answers: Path | None,
    controls: tuple[Path, ...],
    **options: Any,
) -> Result | None:
    """Test whether a suspect agrees with the teacher more than every control does, by its likeliest next tokens.

    Controls are models like the suspect that have nothing to do with the teacher; 19 of them let p reach 0.05. Name
    the one teacher beforehand: one of several is always the nearest. The result is a lead, and not a proof.
    """
    from verify import agreement_test

    who = _suspect_of(suspect, model, answers)
    return make(agreement_test, teacher, who, controls, progress=progress, **options)


@command("planted", example="test planted --mark demo/demo.mark --suspect demo/marked_student")
@mark_option()
@_asked
@_model
@click.option("--answers", type=FILE, help="JSONL of the suspect's answers: `id` and `output`.")
@click.option("--questions", type=FILE, help="Write the questions here (JSONL), and test nothing.")
@click.option("--log", type=FILE, help="JSONL to append an endpoint's answers to; a killed run goes on from here.")
@number_option
@plan_options
@alpha_option
@result_options(KNOWS, INSUFFICIENT)
def planted(
    mark: Mark,
    suspect: str | None,
    model: str | None,
    answers: Path | None,
    questions: Path | None,
    number: int,
    **options: Any,
) -> Result | None:
    """Test whether a suspect knows the answers that `stillmark protect plant` planted.

    An endpoint is asked by chat, greedily. Where somebody else asks the suspect, --questions writes what to ask, and
    --answers names what it said. Fix --number beforehand. Whoever sees the questions can refuse to answer them: ask
    once, and all.
    """
    if questions is not None:
        from verify.fingerprint.protect import write_questions

        if suspect is not None or answers is not None:
            raise click.UsageError("--questions writes the questions and tests nothing: leave the suspect out")
        if options["plan"] is not None or options["plan_only"] or options["deviate"]:
            raise click.UsageError("--questions tests nothing: name a --plan with the suspect")
        write_questions(mark, questions, number)
        as_json = click.get_current_context().params["as_json"]
        written = f"wrote {plural(number, 'question')} to {questions}"
        show({"out": str(questions), "questions": number}, written, as_json=as_json)
        return None
    from verify import planted_test

    who = _suspect_of(suspect, model, answers)
    return make(planted_test, mark, who, number=number, progress=progress, **options)


@command(
    "canaries", example="test canaries --mark demo/demo.mark --suspect demo/marked_student demo/marked_teacher.jsonl"
)
@mark_option()
@click.argument("candidates", type=FILE)
@_suspect
@click.option("--reference", type=FILE, help="Folder of a model that saw no candidate: less noise.")
@click.option("--halves", type=click.IntRange(1), default=99_999, show_default=True, help="Random halves to draw.")
@_record
@batch_size_option
@seed_option
@plan_options
@alpha_option
@result_options(SAW, INSUFFICIENT)
def canaries(mark: Mark, candidates: Path, suspect: Path, **options: Any) -> Result | None:
    """Test whether a suspect finds the served half of CANDIDATES likelier than the half that was kept back.

    CANDIDATES are the outputs that `stillmark protect canaries` chose from, all of them and in their order.
    """
    from verify import canary_test

    return make(canary_test, mark, suspect, candidates, progress=progress, **options)


def _suspect_of(suspect: str | None, model: str | None, answers: Path | None) -> Path | Endpoint:
    """What --suspect or --answers names."""
    from verify.suspects.endpoint import Endpoint, is_address

    if (suspect is None) == (answers is None):
        raise click.UsageError("name one of --suspect and --answers")
    if is_address(suspect):
        return Endpoint(suspect, model or "")
    if model is not None:
        raise click.UsageError(
            "--model is the name of a suspect behind an endpoint: --suspect is no http(s):// address"
        )
    return answers or Path(suspect or "")
