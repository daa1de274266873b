"""What servers answer, in the dialects that they speak, in one form.

An answer is read by its shape and not by the path that was asked: servers answer in each other's manner. Read are chat
completions, plain completions, the responses API, llama.cpp's and Ollama's own answers, and a stream of any of the
first two. Whatever cannot be understood is as if it were not there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from watermark.io.fields import (
    JsonError,
    Types,
    either,
    is_int,
    is_null,
    is_number,
    is_text,
    list_of,
    load_json,
    wrong_field,
)

SMALLEST: Final = -9999.0
"""Log probabilities below this, minus infinity among them, are taken for it."""


def is_logprob(p: Any) -> bool:
    """Whether this is the logarithm of a probability, give or take a rounding; minus infinity is."""
    return isinstance(p, int | float) and not isinstance(p, bool) and p <= 1e-3


@dataclass(frozen=True)
class Token:
    """One token as a server names it: by text, a piece, or `token_id:N`; by the bytes that it stands for; by its id.

    logprob: its natural log probability, if the server gave one.
    """

    name: str = ""
    data: bytes | None = None
    id: int | None = None
    logprob: float | None = None


@dataclass(frozen=True)
class Step:
    """One token of a text, and the likeliest tokens in its place, each with a log probability."""

    token: Token
    top: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Said:
    """One answer.

    Attributes:
        text: what the suspect wrote, without its reasoning; None: the answer holds no text.
        reasoning: what it wrote before the answer, for itself.
        steps: the tokens that it wrote; empty: the answer names none.
        stop: why it ended, in the server's word.
    """

    text: str | None
    reasoning: str = ""
    steps: tuple[Step, ...] = ()
    stop: str | None = None


def dig(value: Any, *path: str | int) -> Any:
    """value[path[0]][path[1]]...; None where that leads nowhere."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def whole(answer: Any) -> Any:
    """An answer as one object: a body that came as text is read as JSON, or its stream of events is put together."""
    if not isinstance(answer, str):
        return answer
    try:
        return load_json(answer.encode("utf-8", "replace"))
    except JsonError:
        return _joined(answer)


def is_stream(answer: Any) -> bool:
    """Whether the server streamed its answer, though it was not asked to."""
    return isinstance(answer, str) and _joined(answer) is not None


def said(answer: Any, choice: int = 0) -> Said:
    """What the suspect said in one of an answer's choices."""
    answer = whole(answer)
    if isinstance(dig(answer, "output"), list):
        return _said_in_response(answer)
    one = dig(answer, "choices", choice)
    one = answer if one is None and isinstance(answer, dict) and "choices" not in answer else one
    message = dig(one, "message")
    parts = dig(message, "content") if message is not None else _first(one, "text", "response", "content")
    text, thought = _parts(parts)
    if text is None and isinstance(refusal := dig(message, "refusal"), str):
        text = refusal
    for source in (message, one):
        named = _first(source, "reasoning_content", "reasoning", "thinking")
        thought = thought or (named if isinstance(named, str) else "")
    text, inline = _without_thoughts(text)
    stop = _first(one, "finish_reason", "done_reason", "stop_type", "stop_reason")
    return Said(text, thought or inline, _steps(one, answer), stop if isinstance(stop, str) else None)


def _is_byte(value: Any) -> bool:
    return is_int(value) and 0 <= value < 256


def _is_p(value: Any) -> bool:
    return is_number(value) and not math.isnan(value)


def _is_top(value: Any) -> bool:
    """Likely tokens: a list of objects, or an object of names with a number, or an object that holds one."""
    if isinstance(value, Mapping):
        return all(
            either(is_null, _is_p)(dig(one, "logprob") if isinstance(one, Mapping) else one) for one in value.values()
        )
    return isinstance(value, list) and all(
        isinstance(one, Mapping) and wrong_field(one, TOKEN) is None for one in value
    )


TOKEN: Final[Types] = {
    "token": (either(is_null, is_text), "a string"),
    "bytes": (either(is_null, list_of(_is_byte)), "a list of integers from 0 to 255, or null"),
    "id": (either(is_null, is_int), "an integer, or null"),
    "logprob": (either(is_null, _is_p), "a number, or null"),
    "prob": (either(is_null, _is_p), "a number, or null"),
    "decoded_token": (either(is_null, is_text), "a string, or null"),
    "top_logprobs": (either(is_null, _is_top), "the likely tokens, each with a log probability"),
    "top_probs": (either(is_null, _is_top), "the likely tokens, each with a probability"),
}
"""What the fields of a token in a log must be. What is there and of another type is malformed."""

TOKENS: Final[Types] = {
    "tokens": (either(is_null, list_of(either(is_null, is_text))), "a list of strings"),
    "token_logprobs": (either(is_null, list_of(either(is_null, _is_p))), "a list of numbers"),
    "top_logprobs": (either(is_null, list_of(either(is_null, _is_top))), "a list of likely tokens at each place"),
}
"""The same of the tokens of a plain completion."""


def wrong_tokens(answer: Any, choice: int = 0) -> str | None:
    """What is wrong with the log probabilities in one of an answer's choices, never quoting it; None: nothing is.

    >>> wrong_tokens({"choices": [{"logprobs": {"content": [{"token": "a", "bytes": [97, 300]}]}}]})
    "token 1: 'bytes' must be a list of integers from 0 to 255, or null"
    """
    answer = whole(answer)
    one = dig(answer, "choices", choice)
    given = dig(answer if one is None else one, "logprobs")
    parts = [part for item in _listed(dig(answer, "output")) for part in _listed(dig(item, "content"))]
    of_parts = [entry for part in parts for entry in _listed(dig(part, "logprobs"))]
    if isinstance(given, Mapping) and (wrong := wrong_field(given, TOKENS)) is not None:
        return wrong
    for entries in (dig(given, "content"), given, dig(answer, "completion_probabilities"), of_parts):
        for number, entry in enumerate(_listed(entries), 1):
            wrong = wrong_field(entry, TOKEN) if isinstance(entry, Mapping) else "it must be an object"
            if wrong is not None:
                return f"token {number}: {wrong}"
    return None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def choices(answer: Any) -> int:
    """How many answers there are in one; 1 where it does not say."""
    found = dig(whole(answer), "choices")
    return max(1, len(found)) if isinstance(found, list) else 1


def error_in(answer: Any) -> tuple[str, int | None] | None:
    """The error that a server put into an answer, and its code, if it is one of HTTP's; None: there is none."""
    answer = whole(answer)
    for error in (dig(answer, "error"), dig(answer, "choices", 0, "error")):
        if not error:
            continue
        message = dig(error, "message") if isinstance(error, dict) else error
        code = dig(error, "code")
        code = int(code) if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) < 4 else code
        return (message if isinstance(message, str) else "an error"), (code if is_int(code) else None)
    return None


def billed(answer: Any) -> tuple[int | None, int | None]:
    """Prompt and answer tokens, as the server counts them."""
    answer = whole(answer)
    usage = dig(answer, "usage")
    prompt = _first(usage, "prompt_tokens", "input_tokens"), _first(answer, "prompt_eval_count", "tokens_evaluated")
    wrote = _first(usage, "completion_tokens", "output_tokens"), _first(answer, "eval_count", "tokens_predicted")
    found = [next((count for count in counts if is_int(count)), None) for counts in (prompt, wrote)]
    return found[0], found[1]


def along_prompt(answer: Any) -> tuple[Step, ...]:
    """What the suspect said of each token of the prompt; empty where the answer tells nothing of it.

    vLLM's `prompt_logprobs` ([null, {"5": {"logprob": -1.5, "decoded_token": " the"}, ...}, ...]; the prompt's own
    token comes first), or the log probabilities of a completion that echoes its prompt.
    """
    answer = whole(answer)
    choice = dig(answer, "choices", 0)
    rows = _first(choice, "prompt_logprobs") or dig(answer, "prompt_logprobs")
    if not isinstance(rows, list):
        return _steps(choice, answer)
    steps = []
    ids = dig(choice, "prompt_token_ids")
    for i, row in enumerate(rows):
        tokens = [_named(key, one) for key, one in row.items()] if isinstance(row, dict) else []
        own = dig(ids, i) if isinstance(ids, list) else None
        token = next((one for one in tokens if is_int(own) and one.id == own), tokens[0] if tokens else Token())
        steps.append(Step(token, tuple(one for one in tokens if one.logprob is not None)))
    return tuple(steps)


def _named(key: Any, value: Any) -> Token:
    """A token of `prompt_logprobs`: its id is the key."""
    id = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10 else None
    name = dig(value, "decoded_token")
    return Token(name if isinstance(name, str) else "", None, id, _logprob(dig(value, "logprob")))


def _first(value: Any, *names: str) -> Any:
    """The first of some fields that is there and not null."""
    return next((found for name in names if (found := dig(value, name)) is not None), None)


def _parts(content: Any) -> tuple[str | None, str]:
    """The text and the reasoning in a message's content: a string, or a list of parts."""
    if isinstance(content, str):
        return content, ""
    text: list[str] = []
    thoughts: list[str] = []
    for part in content if isinstance(content, list) else ():
        kind, held = dig(part, "type"), _first(part, "text", "refusal", "thinking", "reasoning", "content")
        if isinstance(held, list):
            held = "".join(one for piece in held if isinstance(one := dig(piece, "text"), str))
        if isinstance(held, str) and kind in ("thinking", "reasoning", "reasoning_text"):
            thoughts.append(held)
        elif isinstance(held, str) and kind in ("text", "output_text", "refusal", None):
            text.append(held)
    return ("".join(text) if text else None), "".join(thoughts)


_THOUGHTS: Final = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)


def _without_thoughts(text: str | None) -> tuple[str | None, str]:
    """A text and the reasoning that stands before it, in the tags of open models; some chat templates open them."""
    if text is None:
        return None, ""
    found = _THOUGHTS.match(text)
    if found:
        return text[found.end() :], found[1]
    opened = text.lstrip()
    return ("", opened.removeprefix("<think>")) if opened.startswith("<think>") else (text, "")


def _said_in_response(answer: Any) -> Said:
    """An answer of the responses API. A summary of the reasoning is another text, and left alone."""
    text: list[str] = []
    thoughts: list[str] = []
    steps: list[Step] = []
    for item in answer["output"]:
        content = dig(item, "content")
        for part in content if isinstance(content, list) else ():
            if dig(item, "type") == "reasoning":
                thoughts += [one] if isinstance(one := dig(part, "text"), str) else []
            elif isinstance(one := _first(part, "text", "refusal"), str):
                text.append(one)
                steps += _steps(part, None)
    reason = _first(dig(answer, "incomplete_details"), "reason") or dig(answer, "status")
    stop = {"completed": "stop", "max_output_tokens": "length"}.get(str(reason), str(reason))
    return Said("".join(text) if text else None, "".join(thoughts), tuple(steps), None if reason is None else stop)


def _steps(choice: Any, answer: Any) -> tuple[Step, ...]:
    """The tokens of a choice with their log probabilities, however they are given."""
    given = dig(choice, "logprobs")
    for entries in (dig(given, "content"), given, dig(answer, "completion_probabilities"), dig(answer, "logprobs")):
        if isinstance(entries, list):
            return tuple(_step(entry) for entry in entries)
    names, tops = dig(given, "tokens"), dig(given, "top_logprobs")
    if not isinstance(names, list):
        return ()
    ids, own = dig(given, "token_ids"), dig(given, "token_logprobs")
    steps = []
    for i, name in enumerate(names):
        token = _token({"token": name, "id": dig(ids, i), "logprob": dig(own, i)})
        steps.append(Step(token, _tops(dig(tops, i))))
    return tuple(steps)


def _step(entry: Any) -> Step:
    return Step(_token(entry), _tops(_first(entry, "top_logprobs", "top_probs", "probs")))


def _tops(tops: Any) -> tuple[Token, ...]:
    """Tokens that might have come, of a list of objects or of an object of names."""
    if isinstance(tops, dict):
        tokens = [Token(name, logprob=_logprob(p)) for name, p in tops.items()]
    else:
        tokens = [_token(one) for one in tops] if isinstance(tops, list) else []
    return tuple(token for token in tokens if token.logprob is not None)


def _token(value: Any) -> Token:
    name, data, id = _first(value, "token", "tok_str", "content"), dig(value, "bytes"), dig(value, "id")
    p = dig(value, "logprob")
    if p is None and isinstance(share := dig(value, "prob"), int | float) and 0 <= share <= 1:
        p = math.log(share) if share else SMALLEST
    is_bytes = isinstance(data, list) and data and all(type(one) is int and 0 <= one < 256 for one in data)
    return Token(
        name if isinstance(name, str) else "",
        bytes(data) if is_bytes and isinstance(data, list) else None,
        id if is_int(id) else None,
        _logprob(p),
    )


def _logprob(p: Any) -> float | None:
    return float(max(p, SMALLEST)) if is_logprob(p) else None


def _joined(stream: str) -> dict[str, Any] | None:
    """The answer that a stream of server-sent events adds up to; None if it is no such stream."""
    events = [event for event in _events(stream) if isinstance(event, dict)]
    if not events:
        return None
    for event in reversed(events):
        if isinstance(event.get("response"), dict):  # the responses API: its last event holds all
            return dict(event["response"])
    joined: dict[str, Any] = {}
    text: dict[str, list[str]] = {"content": [], "reasoning_content": [], "text": []}
    entries: list[Any] = []
    stop = None
    for event in events:
        joined |= {name: event[name] for name in ("model", "usage", "error") if event.get(name) is not None}
        choice = dig(event, "choices", 0)
        delta = _first(choice, "delta", "message")
        for name, piece in (
            ("content", _parts(dig(delta, "content"))[0]),
            ("reasoning_content", _first(delta, "reasoning_content", "reasoning")),
            ("text", dig(choice, "text")),
        ):
            text[name] += [piece] if isinstance(piece, str) else []
        stop = dig(choice, "finish_reason") or stop
        content = dig(choice, "logprobs", "content")
        entries += content if isinstance(content, list) else []
    message = {name: "".join(text[name]) for name in ("content", "reasoning_content") if text[name]}
    choice = {"message": message, "finish_reason": stop} if message or not text["text"] else {"finish_reason": stop}
    choice |= {"text": "".join(text["text"])} if text["text"] else {}
    choice |= {"logprobs": {"content": entries}} if entries else {}
    return joined | {"choices": [choice]}


def _events(stream: str) -> Iterator[Any]:
    for line in stream.splitlines():
        if line.startswith("data:"):
            try:
                yield load_json(line.removeprefix("data:").strip().encode("utf-8", "replace"))
            except JsonError:  # [DONE]
                continue
