"""stillmark test: single tests for a mark, by what can be had of the suspect."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click

from verify.cli.common import (
    FILE,
    Number,
    alpha_option,
    batch_size_option,
    columns_option,
    command,
    make,
    mark_option,
    plan_options,
    price_options,
    progress,
    reference_option,
    result_options,
    skip_bad_option,
    tokenizer_option,
    unmarked_probes_option,
    unmarked_prompts_option,
)
from verify.results import Result
from watermark import Mark
from watermark.io.fields import JsonError, load_object

_OURS: Final = {
    *("model", "messages", "prompt", "input", "n", "stream", "max_tokens", "logprobs", "top_logprobs"),
    *("prompt_logprobs", "echo", "include"),
}

_decoys = click.option(
    "--decoys", type=click.IntRange(0), help="Number of decoy keys [default: 200; 0 for text without a reference]."
)
_counts = click.option(
    "--context-counts", type=FILE, help="What `stillmark count-contexts` counted: weigh by the root of the counts."
)


@command("text", example="test text --mark demo/demo.mark demo/marked_teacher.jsonl")
@mark_option()
@click.argument("outputs", type=FILE, nargs=-1, required=True)
@reference_option
@click.option(
    "--method",
    type=click.Choice(["auto", "binomial", "counts", "excess"]),
    default="auto",
    help="What decides [default: excess with a --reference, else binomial].",
)
@unmarked_prompts_option
@tokenizer_option
@columns_option
@batch_size_option
@_decoys
@plan_options
@alpha_option
@skip_bad_option
@result_options()
def text(mark: Mark, outputs: tuple[Path, ...], **options: Any) -> Result | None:
    """Test what a suspect wrote.

    OUTPUTS are files of records (`output_ids` or `output`, and `prompt_ids` or `prompt` if there was one), logs of chat
    completions and other shapes that are recognised, or .txt files, an output each.

    The --method that decides is `binomial`, in which a distinct pair is one coin, however often it was written. In
    `counts` a pair weighs as often as it was written. With a --reference the method is `excess`: a pair weighs as
    often as it was written less what the reference expected, which takes far fewer tokens. All are exact or
    bounds; choose before you look. The others are shown beside.
    """
    from verify import text_test

    return make(text_test, mark, outputs, **options, progress=progress)


@command("logprobs", example="test logprobs --mark demo/demo.mark readings/suspect.jsonl")
@mark_option()
@click.argument("records", type=FILE, nargs=-1, required=True)
@click.option("--reference", type=FILE, help="Records of another model at the same positions, or its folder.")
@unmarked_probes_option
@_counts
@_decoys
@tokenizer_option
@columns_option
@batch_size_option
@plan_options
@alpha_option
@skip_bad_option
@result_options()
def logprobs(mark: Mark, records: tuple[Path, ...], unmarked_probes: bool, **options: Any) -> Result | None:
    """Test recorded log probabilities, from JSONL, or from logs of answers as servers give them.

    A record is a position: `context_ids`, the tokens before it, and `top_logprobs`, a list of [token id, natural
    log probability]; the top 20 are plenty. Or it is a text: `output_ids`, `prompt_ids`, and `top_logprobs` with
    such a list (or null) for each output token, as `stillmark test model --record` writes it.
    """
    from verify import logprob_test

    return make(logprob_test, mark, records, unmarked_probes=unmarked_probes or None, progress=progress, **options)


@command("model", example="test model --mark demo/demo.mark --suspect demo/marked_student --reference MODEL")
@mark_option()
@click.option(
    "--suspect", required=True, help="Folder of the suspect's weights, or the http(s):// address of an endpoint."
)
@click.option(
    "--model", "name", help="The name that an endpoint knows the suspect by [default: the one that it serves]."
)
@reference_option
@click.option("--probes", type=FILE, multiple=True, help="Texts to read along; repeat [default: those of the package].")
@unmarked_probes_option
@_counts
@click.option(
    "--record", type=FILE, help="Folder to keep what was read in, for `stillmark test logprobs`, and to resume from."
)
@tokenizer_option
@batch_size_option
@_decoys
@plan_options
@alpha_option
@skip_bad_option
@result_options()
def model(
    mark: Mark, suspect: str, name: str | None, probes: tuple[Path, ...], unmarked_probes: bool, **options: Any
) -> Result | None:
    """Test a suspect whose weights you have, by its probabilities along probe texts.

    An endpoint can be read in the same way if it tells the log probabilities of a prompt's tokens: vLLM does, and
    servers whose completions can echo their prompt. It writes nothing, so that the prompts are all that is billed; it
    needs --record.

    A probe is a record as in `stillmark test text`; the positions of its output are read. Best are texts that cannot
    carry the mark (see `stillmark probes`): then say --unmarked-probes. With a --reference much less is needed; it
    may be any model that does not depend on the secret, and a bad one costs power, not validity. Both may have other
    tokenizers than the mark: what they say is translated. For a folder without one --tokenizer stands in. With --record
    a killed run goes on where it was.
    """
    from verify import Endpoint, logprob_test
    from verify.suspects.endpoint import is_address

    if name is not None and not is_address(suspect):
        raise click.UsageError(
            "--model is the name of a suspect behind an endpoint: --suspect is no http(s):// address"
        )
    return make(
        logprob_test,
        mark,
        Endpoint(suspect, name or "") if is_address(suspect) else Path(suspect),
        probes or None,
        unmarked_probes=unmarked_probes or None,
        progress=progress,
        **options,
    )


def _extra(_ctx: click.Context, _option: click.Parameter, value: str | None) -> dict[str, Any]:
    if value is None:
        return {}
    try:
        fields = load_object(os.fsencode(value))
    except JsonError as error:
        raise click.BadParameter(f"want a JSON object: {error}") from None
    if ours := _OURS & fields.keys():
        raise click.BadParameter(f"{', '.join(sorted(ours))}: not to be set here, the test relies on it")
    return fields


@command(
    "endpoint",
    example="test endpoint --mark demo/demo.mark --suspect http://127.0.0.1:8000/v1 --log answers.jsonl",
)
@mark_option()
@click.option("--suspect", "url", required=True, help="The endpoint, such as http://127.0.0.1:8000/v1.")
@click.option("--model", help="The name that the endpoint knows the suspect by [default: the one that it serves].")
@click.option("--prompts", type=FILE, help='JSONL: {"id": ..., "prompt": "..."} [default: those of the package].')
@click.option(
    "--budget-tokens",
    "budget",
    type=click.IntRange(1),
    default=50_000,
    show_default=True,
    help="Tokens that the endpoint may bill.",
)
@price_options
@click.option(
    "--log", type=FILE, required=True, help="JSONL to append every answer to; a killed run goes on from here."
)
@click.option(
    "--access", type=click.Choice(["auto", "logprobs", "text"]), default="auto", show_default=True,
    help="What of an answer is scored.",
)  # fmt: skip
@click.option(
    "--api", type=click.Choice(["chat", "completions", "responses"]), default="chat", show_default=True,
    help="Which interface of the endpoint is asked.",
)  # fmt: skip
@reference_option
@unmarked_prompts_option
@tokenizer_option
@click.option(
    "--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Tokens of one answer, at most."
)
@click.option("--temperature", type=Number(0), default=1.0, show_default=True, help="That it answers with.")
@click.option(
    "--top-logprobs", type=click.IntRange(1), default=20, show_default=True,
    help="Likeliest tokens to ask for in each place, where log probabilities are scored.",
)  # fmt: skip
@click.option(
    "--score-reasoning", "reasoning", is_flag=True, help="Score what it writes for itself before an answer, too."
)
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="Answers to each prompt.")
@click.option("--extra", callback=_extra, help='More fields of each request, as JSON: {"seed": 1}.')
@click.option("--concurrency", type=click.IntRange(1), default=4, show_default=True, help="Requests at once.")
@click.option("--timeout", type=Number(0, min_open=True), default=120.0, show_default=True,
              help="Seconds to wait for one answer.")  # fmt: skip
@click.option(
    "--retries", type=click.IntRange(0), default=5, show_default=True, help="Times to ask again if a request fails."
)
@click.option(
    "--least", type=Number(0, min_open=True), default=0.05, show_default=True,
    help="Smallest effect of interest: log odds of green for a unit of weight.",
)  # fmt: skip
@plan_options
@alpha_option
@result_options()
def endpoint(
    mark: Mark,
    url: str,
    model: str | None,
    api: str,
    max_tokens: int,
    temperature: float,
    top_logprobs: int,
    reasoning: bool,
    samples: int,
    extra: dict[str, Any],
    concurrency: int,
    timeout: float,
    retries: int,
    unmarked_prompts: bool,
    **options: Any,
) -> Result | None:
    """Test a suspect behind an OpenAI-compatible endpoint, with as few tokens as the evidence takes.

    Asks the prompts in order and looks after every answer; stops when the evidence suffices, when the smallest
    effect of interest would have shown by now, at the budget, or after the last prompt. The p-value holds however it
    stopped. With --access auto log probabilities are scored if the first answer that tells something brings some that
    can be used, else the text; the result says why.

    Where the server refuses --max-tokens under that name, a temperature, or so many log probabilities, it is asked
    again as it wants, and the result says so.

    The key is read from OPENAI_API_KEY. `stillmark test logprobs` or `test text` on the log give the same number.
    """
    from verify import Endpoint, endpoint_test

    where = Endpoint(
        url,
        model or "",
        api=api,
        max_tokens=max_tokens,
        temperature=temperature,
        top_logprobs=top_logprobs,
        reasoning=reasoning,
        samples=samples,
        extra=extra,
        timeout=timeout,
        retries=retries,
        concurrency=concurrency,
    )
    return make(endpoint_test, mark, where, unmarked_prompts=unmarked_prompts or None, progress=progress, **options)


@click.group()
def test() -> None:
    """Make one test. (`stillmark verify` chooses the tests by what you have, and judges all together.)"""


for one in (text, logprobs, model, endpoint):
    test.add_command(one)
