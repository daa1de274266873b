"""Asking a suspect behind an OpenAI-compatible endpoint: requests, and a log of every answer as it came.

Nothing that a server answers can make a test unsound: whatever it says is a choice of the suspect's, and the suspect
does not know the key. What cannot be understood is left out, logged, and counted.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard
from urllib.parse import unquote, urlsplit

from verify.data.dialects import is_logprob
from verify.suspects.model import TopTokens
from watermark import ApiError, InputError
from watermark.extras import require
from watermark.io.prompts import Prompt
from watermark.io.records import Append, Record, resuming, run_digest
from watermark.progress import Progress, silent

if TYPE_CHECKING:
    from openai import OpenAI


MAX_FAILURES: Final = 5
"""Failed requests in a row after which it makes no sense to go on."""

MIN_SECRET_LENGTH: Final = 8
"""Characters of a secret; a local server's `none` is none."""


class TooManyFailuresError(ApiError):
    """An endpoint fails again and again."""


class NoLogprobsError(ApiError):
    """An endpoint gives no log probabilities."""


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask. The key is read from the environment by the client, and never kept.

    Attributes:
        base_url: such as http://127.0.0.1:8000/v1.
        model: the name to ask for.
        chat: chat completions; otherwise plain completions.
        max_tokens: of one answer.
        temperature: of sampling.
        top_logprobs: how many to ask for; 0: text only.
        extra: further fields of each request.
        timeout: seconds.
        retries: of one request, for broken connections, time-outs, 408, 409, 429 and 5xx, with growing pauses or
            those that the server names.
        concurrency: requests under way at once.
    """

    base_url: str
    model: str
    chat: bool = True
    max_tokens: int = 128
    temperature: float = 1.0
    top_logprobs: int = 20
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    retries: int = 5
    concurrency: int = 4

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises ApiError for an address that is none, and for prompts of token ids, which no chat takes."""
        try:
            parts = urlsplit(self.base_url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            valid = False
        if not valid:
            raise ApiError("the endpoint's address is no http(s):// URL", "such as http://127.0.0.1:8000/v1")
        if self.chat and any(prompt.ids is not None for prompt in prompts):
            raise ApiError("prompts of token ids need completions (`chat=False`)", "or give the prompts as text")

    def digest(self, prompts: Sequence[Prompt], *more: str) -> str:
        """Twelve hex digits for all that shapes the answers; the address may change, and so may patience."""
        how = asdict(self)
        for name in ("base_url", "timeout", "retries", "concurrency"):
            del how[name]
        return run_digest(how, prompts, *more)


def is_address(what: object) -> TypeGuard[str]:
    """Whether this is the address of an endpoint, and no path."""
    return isinstance(what, str) and what.startswith(("http://", "https://"))


def resolved(endpoint: Endpoint) -> Endpoint:
    """The endpoint under the name of the one model that it serves, if no name was given.

    Raises:
        ApiError: it cannot be asked, or serves no model or several.
    """
    if endpoint.model:
        return endpoint
    client = _client(endpoint)
    import openai

    try:
        names = [str(one.id) for one in client.models.list().data]
    except (openai.OpenAIError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ApiError(
            f"the endpoint does not say which models it serves: {type(error).__name__}", "name the `model`"
        ) from None
    shown = ["".join(c for c in name if c.isprintable())[:100] for name in names]
    if len(names) != 1:
        listed = f": {', '.join(shown[:10])}" if names else ""
        raise ApiError(f"the endpoint serves {len(names)} models{listed}", "name the `model`")
    return replace(endpoint, model=names[0])


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
) -> list[Completion | None]:
    """Ask every prompt once; None where no answer came. Those of an earlier run are taken from the log.

    The log is JSONL, appended and flushed: `id`, `prompt`, the `request`, the server's `answer` as it came, and an
    `error`, or null. A prompt that failed is asked anew by the next run.

    Args:
        endpoint: where and how to ask.
        prompts: what to ask.
        log: the file.
        progress: called with the number of prompts asked, and of how many.

    Raises:
        ApiError: the endpoint refuses, fails again and again, answers nothing at all, or is not one model throughout.
        NoLogprobsError: it gives no log probabilities, and some were asked for.
        InputError: the log cannot be written, is of another run, or another run writes it.
    """
    endpoint.check(prompts)
    run = endpoint.digest(prompts)
    said: dict[str, Completion] = {}
    failed: set[str] = set()
    served: str | None = None

    def take(line: Mapping[str, Any]) -> None:
        nonlocal served
        served = same_model(served, line.get("answer"))
        if line.get("error") is not None:
            failed.add(line["id"])
            return
        answer = _said(line.get("answer"), endpoint.chat)
        if endpoint.top_logprobs and not answer.top and not said:
            raise NoLogprobsError("the endpoint gives no log probabilities", "`top=1` compares what it writes")
        said[line["id"]] = answer

    def line_of(prompt: Prompt, fields: dict[str, Any]) -> dict[str, Any]:
        if fields["error"] is None and text_of(fields["answer"], endpoint.chat) is None:
            fields["error"] = "the answer holds no text"
        return {"id": prompt.id, "prompt": prompt.text, **fields}

    def most() -> int:
        return endpoint.concurrency if said else 1  # one answer first, to learn whether there are log probabilities

    with resuming(log, run) as (earlier, append):
        waiting = unanswered(prompts, earlier)
        for record in earlier:
            take(record.fields)
        done = len(said)
        progress(done, len(prompts))
        try:
            for lines in request_in_waves(
                endpoint, waiting, append, log, line_of, most, lambda: endpoint.top_logprobs > 0, bool(said)
            ):
                for line in lines:
                    take(line)
                done += len(lines)
                progress(done, len(prompts))
        except TooManyFailuresError:
            if not said or any(prompt.id not in said and prompt.id not in failed for prompt in prompts):
                raise  # some were never asked
    if not said:
        raise ApiError("the endpoint answered no prompt", f"the log is {log}")
    return [said.get(prompt.id) for prompt in prompts]


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


def request_in_waves(
    endpoint: Endpoint,
    waiting: Sequence[Prompt],
    append: Append,
    log: Path,
    line_of: Callable[[Prompt, dict[str, Any]], dict[str, Any]],
    most: Callable[[], int],
    logprobs: Callable[[], bool],
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
        logprobs: whether the next wave asks for log probabilities.
        answered: the endpoint has answered before: then a refusal is one prompt's, and not the key's.

    Raises:
        ApiError: no client or key, or a refusal that another try would meet too.
        TooManyFailuresError: `MAX_FAILURES` failures in a row.
        InputError: the log cannot be written.
    """
    client = _client(endpoint)
    secrets = _secrets(endpoint, client.api_key)
    in_a_row = 0
    with ThreadPoolExecutor(endpoint.concurrency) as pool:
        while waiting and (size := most()) > 0:
            wave, waiting = waiting[:size], waiting[size:]
            lines, refusals = [], []
            wanted = logprobs()
            answers = pool.map(lambda prompt, wanted=wanted: _ask(client, endpoint, prompt, wanted), wave)
            for prompt, (fields, refusal) in zip(wave, answers, strict=True):
                line = line_of(prompt, _plain(fields, secrets))
                lines.append(line)
                refusals += [refusal] if refusal else []
                in_a_row = in_a_row + 1 if line["error"] is not None else 0
                answered = answered or line["error"] is None
            append(lines)
            if refusals and not answered:
                raise refusals[0]
            yield lines
            if in_a_row >= MAX_FAILURES:
                raise TooManyFailuresError(
                    f"the last {in_a_row} requests failed; the last one: {lines[-1]['error']}",
                    f"nothing is lost: the same command goes on from {log}",
                )


def same_model(before: str | None, answer: Any) -> str | None:
    """The name under which a server answered, if it gives one. Raises ApiError if it gave another before."""
    served = dig(answer, "model")
    if not isinstance(served, str):
        return before
    served = "".join(c for c in served if c.isprintable())[:200]
    if before not in (None, served):
        raise ApiError(
            f"the server answered as '{before}' before, and now as '{served}'",
            "evidence must come from one model: test each under its own name, with a log of its own",
        )
    return served


def text_of(answer: Any, chat: bool) -> str | None:
    """An answer's text, if it holds one."""
    choice = dig(answer, "choices", 0)
    text = dig(choice, "message", "content") if chat else dig(choice, "text")
    return text if isinstance(text, str) else None


def entries_of(answer: Any, chat: bool) -> list[tuple[Any, list[tuple[Any, float]]]]:
    """(token, [(token, log probability), ...]) for each sampled token of an answer, as the server spells them."""
    choice = dig(answer, "choices", 0)
    return _chat_entries(choice) if chat else _plain_entries(choice)


def dig(value: Any, *path: str | int) -> Any:
    """value[path[0]][path[1]]...; None where that leads nowhere."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _said(answer: Any, chat: bool) -> Completion:
    entries = entries_of(answer, chat)
    top = sorted(entries[0][1], key=lambda one: -one[1]) if entries else []
    return Completion(text_of(answer, chat) or "", tuple(token for token, _ in top if isinstance(token, str)))


def _chat_entries(choice: Any) -> list[tuple[Any, list[tuple[Any, float]]]]:
    """(token, [(token, log probability), ...]) for each sampled token of a chat completion."""
    content = dig(choice, "logprobs", "content")
    found = []
    for entry in content if isinstance(content, list) else []:
        tops = dig(entry, "top_logprobs")
        rows = [(dig(top, "token"), dig(top, "logprob")) for top in (tops if isinstance(tops, list) else [])]
        found.append((dig(entry, "token"), [(token, p) for token, p in rows if is_logprob(p)]))
    return found


def _plain_entries(choice: Any) -> list[tuple[Any, list[tuple[Any, float]]]]:
    """The same of a plain completion."""
    tokens, tops = dig(choice, "logprobs", "tokens"), dig(choice, "logprobs", "top_logprobs")
    if not isinstance(tokens, list) or not isinstance(tops, list) or len(tokens) != len(tops):
        return []
    rows = [top if isinstance(top, dict) else {} for top in tops]
    return [(token, [(t, p) for t, p in row.items() if is_logprob(p)]) for token, row in zip(tokens, rows, strict=True)]


def _client(endpoint: Endpoint) -> OpenAI:
    require("openai")
    import openai

    # a server on this machine wants no key, and the client insists on one
    local = urlsplit(endpoint.base_url).hostname in ("localhost", "127.0.0.1", "::1")
    key = "none" if local and not os.environ.get("OPENAI_API_KEY") else None
    try:
        return openai.OpenAI(
            base_url=endpoint.base_url, api_key=key, timeout=endpoint.timeout, max_retries=endpoint.retries
        )
    except openai.OpenAIError:
        raise ApiError(
            "no API key in the environment", "set OPENAI_API_KEY; a local server takes any value, such as 'none'"
        ) from None


def _ask(client: OpenAI, endpoint: Endpoint, prompt: Prompt, logprobs: bool) -> tuple[dict[str, Any], ApiError | None]:
    """One request: `request`, the `answer` as it came, and `error`; and a refusal that another try would meet too."""
    import openai

    request: dict[str, Any] = {"model": endpoint.model, "max_tokens": endpoint.max_tokens}
    request["temperature"] = endpoint.temperature
    path = "/chat/completions" if endpoint.chat else "/completions"
    if endpoint.chat:
        request["messages"] = [{"role": "user", "content": prompt.text}]
        request |= {"logprobs": True, "top_logprobs": endpoint.top_logprobs} if logprobs else {}
    else:
        request["prompt"] = prompt.text if prompt.ids is None else list(prompt.ids)
        request |= {"logprobs": endpoint.top_logprobs} if logprobs else {}
    request |= endpoint.extra
    try:
        # as it comes, and not through the client's types: they would drop what they do not know
        return {"request": request, "answer": client.post(path, body=request, cast_to=object), "error": None}, None
    except openai.APIStatusError as error:
        code = error.status_code
        if code in (400, 422) and logprobs:
            return _ask(client, endpoint, prompt, False)
        reason = f"HTTP {code} from {path}: {_clean(error.message, client)}"
        refusal = None
        if code in (401, 403, 404):  # no matter of this one prompt
            hint = "is the key right?" if code != 404 else "are URL and model right?"
            refusal = ApiError(f"the endpoint refuses: {reason}", hint)
        return {"request": request, "answer": None, "error": reason}, refusal
    except (openai.OpenAIError, ValueError, RecursionError) as error:  # a body that is no JSON, or nested too deep
        return {"request": request, "answer": None, "error": type(error).__name__}, None


def _clean(message: str, client: OpenAI) -> str:
    """One line of a server's words: without the key, if it repeats it, and without control characters."""
    key = client.api_key if len(client.api_key) >= MIN_SECRET_LENGTH else "\0"
    words = " ".join(message.replace(key, "[key]").split())
    return "".join(c for c in words if c.isprintable())[:200]


def _secrets(endpoint: Endpoint, key: str) -> list[str]:
    """What a server might repeat and a log must not hold. A key too short to be one is taken for a word."""
    parts = urlsplit(endpoint.base_url)
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    named = [key, parts.password or "", unquote(parts.password or ""), base64.b64encode(login.encode()).decode()]
    return [secret for secret in named if len(secret) >= MIN_SECRET_LENGTH]


def _plain(fields: dict[str, Any], secrets: Sequence[str]) -> dict[str, Any]:
    """As it can be logged: without secrets, and with a question mark for half a surrogate pair, which is no text."""

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            value = value.encode("utf-8", "replace").decode()
            for secret in secrets:
                value = value.replace(secret, "[key]")
            return value
        if isinstance(value, Mapping):
            return {clean(name): clean(one) for name, one in value.items()}
        return [clean(one) for one in value] if isinstance(value, list | tuple) else value

    try:
        cleaned: dict[str, Any] = clean(fields)
    except RecursionError:  # nested too deep
        return {"request": clean(fields["request"]), "answer": None, "error": "RecursionError"}
    return cleaned


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
        ApiError: what `verify.suspects.endpoint.ask_all` raises, or there are no log probabilities and top is not 1.
        InputError: the log cannot be written, or is of another run.
    """
    how = replace(endpoint, max_tokens=1, temperature=0.0, top_logprobs=0 if top == 1 else top)
    answers = ask_all(how, prompts, log, progress)
    return [frozenset(() if one is None else [one.text] if top == 1 and one.text else one.top[:top]) for one in answers]
