"""Asking an endpoint prompt by prompt, wave by wave: every answer is in the log before it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from verify.data.dialects import choices, dig, whole
from verify.suspects.client import Client
from verify.suspects.endpoint import Endpoint
from watermark import ApiError
from watermark.io.prompts import Prompt
from watermark.io.records import Append

MAX_FAILURES: Final = 5
"""Failed requests in a row after which it makes no sense to go on."""


class TooManyFailuresError(ApiError):
    """An endpoint fails again and again."""


def request_in_waves(
    endpoint: Endpoint,
    waiting: Sequence[Prompt],
    append: Append,
    log: Path,
    line_of: Callable[[Prompt, dict[str, Any]], dict[str, Any]],
    most: Callable[[], int],
    wanted: Callable[[], str],
    answered: bool = False,
) -> Iterator[list[dict[str, Any]]]:
    """Ask prompts in order, wave by wave; each wave's lines are in the log before they are yielded.

    Args:
        endpoint: where and how to ask.
        waiting: what to ask.
        append: adds lines to the log.
        log: where it is, for the errors.
        line_of: a line for the log, from a prompt and the fields `request`, `answer` and `error`, which it may set.
        most: how many requests the next wave may have; 0 ends the asking.
        wanted: what the next wave asks for beside text: `TEXT` (nothing), `LOGPROBS`, `PROMPT_LOGPROBS` or `ECHO`.
        answered: the endpoint has answered before: then a refusal is one prompt's, and not the key's.

    Raises:
        ApiError: no client or key, or a refusal that another try would meet too.
        TooManyFailuresError: `MAX_FAILURES` failures in a row.
        InputError: the log cannot be written.
    """
    client = Client(endpoint)
    in_a_row, samples = 0, endpoint.samples
    pool = ThreadPoolExecutor(endpoint.concurrency)
    try:
        while waiting and (size := most()) > 0:
            wave, waiting = _alike(waiting, size, samples)
            lines: list[dict[str, Any]] = []
            refusals = []
            what = wanted()
            answers = pool.map(lambda alike, what=what: client.ask(alike[0], what, len(alike)), wave)
            try:
                for alike, (fields, refusal) in zip(wave, answers, strict=True):
                    came = min(len(alike), choices(fields["answer"])) if fields["error"] is None else 1
                    for number, prompt in enumerate(alike[:came]):
                        line = line_of(prompt, fields | ({"choice": number} if number else {}))
                        lines.append(line | ({"answer": None, "answer_of": alike[0].id} if number else {}))
                        in_a_row = in_a_row + 1 if line["error"] is not None else 0
                        answered = answered or line["error"] is None
                    if came < len(alike):  # the server answers once
                        waiting, samples = [*alike[came:], *waiting], 1
                    refusals += [refusal] if refusal else []
            finally:  # also where Ctrl-C stopped the wait for the rest: these were billed
                append(lines)
            if refusals and not answered:
                raise refusals[0]
            yield lines
            if in_a_row >= MAX_FAILURES:
                raise TooManyFailuresError(
                    f"the last {in_a_row} requests failed; the last one: {lines[-1]['error']}",
                    f"nothing is lost: the same command goes on from {log}",
                )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a request under way would hold up Ctrl-C for minutes
        client.close()


def _alike(waiting: Sequence[Prompt], size: int, samples: int) -> tuple[list[Sequence[Prompt]], Sequence[Prompt]]:
    """The next `size` requests, each of up to `samples` equal prompts that stand together; and what is left."""
    wave: list[Sequence[Prompt]] = []
    while waiting and len(wave) < size:
        first, number = waiting[0], 1
        while number < min(samples, len(waiting)) and replace(waiting[number], id=first.id) == first:
            number += 1
        wave.append(waiting[:number])
        waiting = waiting[number:]
    return wave, waiting


def same_model(before: str | None, answer: Any) -> str | None:
    """The name under which a server answered, if it gives one. Raises ApiError if it gave another before."""
    served = dig(whole(answer), "model")
    if not isinstance(served, str):
        return before
    served = "".join(c for c in served if c.isprintable())[:200]
    if before not in (None, served):
        raise ApiError(
            f"the server answered as '{before}' before, and now as '{served}'",
            "evidence must come from one model: test each under its own name, with a log of its own",
        )
    return served
