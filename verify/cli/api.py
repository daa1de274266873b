"""stillmark verify api: a suspect behind an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from verify.cli.common import (
    FILE,
    alpha_option,
    fail_on_option,
    json_option,
    load_mark,
    mark_option,
    progress,
    unmarked_prompts_option,
)
from verify.cli.results import report
from watermark.io.fields import JsonError, load_json
from watermark.tokenizers import quiet_transformers

_OURS = {"model", "messages", "prompt", "n", "stream", "max_tokens", "logprobs", "top_logprobs"}


def _extra(_ctx: click.Context, _option: click.Parameter, value: str | None) -> dict[str, Any]:
    if value is None:
        return {}
    try:
        fields = load_json(value.encode("utf-8", "surrogatepass"))
    except JsonError:
        fields = None
    if not isinstance(fields, dict):
        raise click.BadParameter("want a JSON object")
    if ours := _OURS & fields.keys():
        raise click.BadParameter(f"{', '.join(sorted(ours))}: not to be set here, the test relies on it")
    return fields


@click.command()
@mark_option()
@click.option("--base-url", required=True, help="Such as http://127.0.0.1:8000/v1.")
@click.option("--model", required=True, help="The name that the endpoint knows the suspect by.")
@click.option("--prompts", type=FILE, required=True, help='JSONL: {"id": ..., "prompt": "..."}.')
@click.option("--budget-tokens", type=click.IntRange(1), required=True, help="Stop when so many tokens were billed.")
@click.option(
    "--log", type=FILE, required=True, help="JSONL to append every answer to; a killed run goes on from here."
)
@click.option("--access", type=click.Choice(["auto", "logprobs", "text"]), default="auto", show_default=True)
@click.option("--endpoint", type=click.Choice(["chat", "completions"]), default="chat", show_default=True)
@click.option("--reference", type=FILE, help="Folder of a model to compare with: the suspect's parent, say.")
@unmarked_prompts_option
@click.option("--tokenizer", type=FILE, help="Folder of the mark's tokenizer.")
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Of one answer.")
@click.option("--temperature", type=click.FloatRange(0), default=1.0, show_default=True)
@click.option("--top-logprobs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--extra", callback=_extra, help='More fields of each request, as JSON: {"seed": 1}.')
@click.option("--concurrency", type=click.IntRange(1), default=4, show_default=True, help="Requests at once.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=120.0, show_default=True, help="Seconds.")
@click.option("--retries", type=click.IntRange(0), default=5, show_default=True, help="Of one request.")
@click.option("--least", type=click.FloatRange(0, min_open=True), default=0.05, show_default=True,
              help="Smallest effect of interest: log odds of green for a unit of weight.")  # fmt: skip
@alpha_option
@fail_on_option
@json_option
@click.pass_context
def api(
    ctx: click.Context,
    mark_path: Path,
    allow_readable: bool,
    base_url: str,
    model: str,
    prompts: Path,
    budget_tokens: int,
    log: Path,
    access: str,
    endpoint: str,
    reference: Path | None,
    unmarked_prompts: bool,
    tokenizer: Path | None,
    max_tokens: int,
    temperature: float,
    top_logprobs: int,
    extra: dict[str, Any],
    concurrency: int,
    timeout: float,
    retries: int,
    least: float,
    alpha: float,
    fail_on: str | None,
    as_json: bool,
) -> None:
    """Test a suspect behind an OpenAI-compatible endpoint, with as few tokens as the evidence takes.

    Asks the prompts in order and looks after every answer; stops when the evidence suffices, when the smallest
    effect of interest would have shown by now, at the budget, or after the last prompt. The p-value holds however it
    stopped. With --access auto log probabilities are scored if the first answer brings some, else the text.

    The key is read from OPENAI_API_KEY. `verify logprobs` or `verify text` on the log give the same number.
    """
    from verify.radioactivity.run import examine
    from verify.suspects.endpoint import Endpoint
    from verify.suspects.interview import ReferenceLog, Usage, iter_answers
    from watermark import tokenizers
    from watermark.io.prompts import read_prompts

    mark = load_mark(mark_path, allow_readable)
    asked = read_prompts(prompts)
    quiet_transformers()
    where = Endpoint(
        base_url, model, endpoint == "chat", max_tokens, temperature, top_logprobs if access != "text" else 0,
        extra, timeout, retries, concurrency,
    )  # fmt: skip
    loaded = tokenizers.load_for(mark, tokenizer)
    tally = Usage()
    compared = ReferenceLog(reference, mark, tally, log) if reference else None
    with progress("asking", "billed tokens") as update:
        waves = iter_answers(where, asked, mark, loaded, log, budget_tokens, tally)
        result = examine(
            waves, tally, mark, log, alpha, unmarked=unmarked_prompts, access=access, least=least, compared=compared,
            judged=lambda: update(tally.billed, budget_tokens),
        )  # fmt: skip
    more = {
        "stopped": result.stopped or ("budget" if tally.billed >= budget_tokens else "prompts"),
        "billed_tokens": tally.billed,
        "failed_requests": tally.failed,
        "unknown_tokens": tally.unknown_tokens,
        "served_model": tally.served,
        "log": str(log),
    }
    report(ctx, result, more, as_json, fail_on)
