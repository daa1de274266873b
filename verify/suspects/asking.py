"""Asking an endpoint every prompt once: the answers and their log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from verify.data.dialects import Said, said
from verify.suspects.endpoint import Endpoint
from verify.suspects.manner import LOGPROBS, TEXT
from verify.suspects.model import TopTokens
from verify.suspects.waves import TooManyFailuresError, request_in_waves, same_model
from watermark import ApiError, InputError
from watermark.io.prompts import Prompt
from watermark.io.records import Record, resuming
from watermark.progress import Progress, silent

NO_LOGPROBS: Final = "the endpoint gives no log probabilities"


class NoLogprobsError(ApiError):
    """An endpoint gives no log probabilities."""


@dataclass(frozen=True)
class Completion:
    """One answer: its text, and the first token's likeliest alternatives as the server spells them, if it told any."""

    text: str
    top: tuple[str, ...]


def ask_all(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    log: Path,
    progress: Progress = silent,
    key: bytes | None = None,
) -> list[Completion | None]:
    """Ask every prompt once; None where no answer came. Those of an earlier run are taken from the log.

    The log is JSONL, appended and flushed: `id`, `prompt`, the `request`, the server's `answer` as it came, and an
    `error`, or null. A prompt that failed is asked anew by the next run.

    Args:
        endpoint: where and how to ask.
        prompts: what to ask.
        log: the file.
        progress: called with the number of prompts asked, and of how many.
        key: seals the log, as for `resuming`.

    Raises:
        ApiError: the endpoint refuses, fails again and again, answers nothing at all, or is not one model throughout.
        NoLogprobsError: it gives no log probabilities, and some were asked for.
        InputError: the log cannot be written, is of another run, or another run writes it.
    """
    endpoint = replace(endpoint, samples=1)
    endpoint.check(prompts)
    run = endpoint.digest(prompts)
    heard: dict[str, Completion] = {}
    failed: set[str] = set()
    served: str | None = None

    def take(line: Mapping[str, Any]) -> None:
        nonlocal served
        served = same_model(served, line.get("answer"))
        if line.get("error") is not None:
            failed.add(line["id"])
            return
        answer = _completion(line.get("answer"))
        if endpoint.top_logprobs and answer.text and not any(one.top for one in (answer, *heard.values())):
            message = " ".join([f"{NO_LOGPROBS}.", *line["changed"]]) if line.get("changed") else NO_LOGPROBS
            raise NoLogprobsError(message, "`top=1` compares what it writes")
        heard[line["id"]] = answer

    def line_of(prompt: Prompt, fields: dict[str, Any]) -> dict[str, Any]:
        if fields["error"] is None:
            fields["error"] = nothing_said(said(fields["answer"]))
        return {"id": prompt.id, "prompt": prompt.text, **fields}

    def most() -> int:
        return endpoint.concurrency if heard else 1  # one answer first, to learn whether there are log probabilities

    with resuming(log, run, key) as (earlier, append):
        waiting = unanswered(prompts, earlier)
        for record in earlier:
            take(record.fields)
        done = len(heard)
        progress(done, len(prompts))
        try:
            for lines in request_in_waves(
                endpoint,
                waiting,
                append,
                log,
                line_of,
                most,
                lambda: LOGPROBS if endpoint.top_logprobs else TEXT,
                bool(heard),
            ):
                for line in lines:
                    take(line)
                done += len(lines)
                progress(done, len(prompts))
        except TooManyFailuresError:
            if not heard or any(prompt.id not in heard and prompt.id not in failed for prompt in prompts):
                raise  # some were never asked
    if not heard:
        raise ApiError("the endpoint answered no prompt", f"the log is {log}")
    return [heard.get(prompt.id) for prompt in prompts]


def unanswered(prompts: Sequence[Prompt], earlier: Sequence[Record]) -> list[Prompt]:
    """The prompts to ask, in order; those that failed in an earlier run come last, in case a server chokes on them.

    Raises:
        InputError: a record of the earlier run is of no prompt, or comes after the prompt's answer.
    """
    known = {prompt.id for prompt in prompts}
    answered: dict[str, int] = {}
    failed: set[str] = set()
    for record in earlier:
        name = record.fields["id"]
        hint = "did two runs write to it? choose another file, or remove this one"
        if name not in known:
            raise InputError(record.path, record.line, f"record '{name}' is of no prompt", hint)
        if name in answered:
            message = f"prompt '{name}' was answered before, in line {answered[name]}"
            raise InputError(record.path, record.line, message, hint)
        if record.fields.get("error") is None:
            answered[name] = record.line
        else:
            failed.add(name)
    waiting = [prompt for prompt in prompts if prompt.id not in answered]
    return sorted(waiting, key=lambda prompt: prompt.id in failed)


def nothing_said(answer: Said, reasoning: bool = False) -> str | None:
    """Why an answer holds nothing that can be used; None: it does. reasoning: that is used, too."""
    if answer.reasoning and not answer.text and not reasoning:
        return "it only thought, and came to no answer: raise `max_tokens`, or score its reasoning (`reasoning=True`)"
    return "the answer holds no text" if answer.text is None and not answer.reasoning else None


def _completion(answer: Any) -> Completion:
    heard = said(answer)
    top = sorted(heard.steps[0].top, key=lambda token: -(token.logprob or 0.0)) if heard.steps else []
    return Completion(heard.text or "", tuple(token.name for token in top if token.name))


def likeliest_of_endpoint(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    log: Path,
    top: int = 1,
    progress: Progress = silent,
) -> list[TopTokens]:
    """The same of a suspect behind an endpoint: what it writes first, or the top of what it might have written.

    Args:
        endpoint: where; how to ask is settled here: one token, greedily.
        prompts: what to ask.
        log: JSONL of all answers; a killed run goes on from there.
        top: how many tokens.
        progress: called with the number of prompts asked, and of how many.

    Raises:
        ApiError: what `verify.suspects.asking.ask_all` raises, or there are no log probabilities and top is not 1.
        InputError: the log cannot be written, or is of another run.
    """
    how = replace(endpoint, max_tokens=1, temperature=0.0, top_logprobs=0 if top == 1 else top)
    answers = ask_all(how, prompts, log, progress)
    return [frozenset(() if one is None else [one.text] if top == 1 and one.text else one.top[:top]) for one in answers]
