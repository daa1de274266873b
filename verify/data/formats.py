"""The shapes of records in which logs and data sets hold a model's answers: one small function for each.

All that the suspect was shown is the prompt: system and user turns, tools and their results, and its own earlier turns
of the same conversation. Scored is its last turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from verify.data.beside import shown_in_answer
from verify.data.conversations import (
    ShapeError,
    by_suspect,
    every_text,
    is_conversation,
    last_answer,
    other_texts,
    shown_in,
    turns_of,
)
from verify.data.dialects import (
    TOKEN,
    Said,
    Step,
    Token,
    dig,
    error_in,
    is_logprob,
    said,
    whole,
    wrong_tokens,
)
from verify.data.streams import is_chunk, joined
from watermark.io.fields import is_int, is_number, not_wanted, wrong_field

Fields = Mapping[str, Any]

REQUESTS: Final = ("request", "request_body", "body", "kwargs")
RESPONSES: Final = ("response", "response_body", "answer", "completion", "result", "output", "body")
"""Where a log keeps what was asked and what came back: an object, or its JSON as text."""

ANSWERS: Final = ("completion", "response", "answer")
"""Plain text that a model wrote, in tables of prompts and answers."""

CONVERSATIONS: Final = ("messages", "conversations", "conversation")

PROMPTS: Final = (
    "tools", "functions", "system", "system_prompt", "instructions", "history", "context", "instruction", "input",
    "question", "prompt", *CONVERSATIONS, *REQUESTS,
)  # fmt: skip
"""Fields that hold, together and in this order, what a model was shown."""

DOCUMENTS: Final = (
    "documents", "document", "docs", "doc", "passages", "passage", "contexts", "contents", "knowledge", "background",
    "article", "retrieved", "retrieved_context", "retrieved_documents", "search_results", "sources", "source",
    "observations", "observation", "metadata", "multi_modal_data", "chat_history", "dialogue", "dialog", "developer",
    "preamble", "system_instruction", "examples", "few_shot", "demonstrations", "prefix", "suffix", "prefill", "query",
)  # fmt: skip
"""Fields that may hold a longer text that it was shown besides."""

NAMES: Final = ("id", "custom_id", "request_id", "doc_id")
"""Fields that may hold a record's name."""


@dataclass(frozen=True)
class Answer:
    """One output as a log tells it.

    Attributes:
        output: what the suspect wrote; None: the log has no text of it.
        prompt: all that it was shown; None: the record does not say.
        output_ids, prompt_ids: the same in the suspect's own tokens, where the log has them.
        steps: what was said at each token of the output.
        stop: why it ended, in the server's word.
        beside: text that it was shown besides `prompt_ids`.
    """

    output: str | None
    prompt: str | None = None
    output_ids: Any = None
    prompt_ids: Any = None
    steps: tuple[Step, ...] = ()
    stop: str | None = None
    beside: str | None = None


@dataclass(frozen=True)
class Shape:
    """A shape of records: its name, whether a record has it, and the answers in a record (or a ShapeError)."""

    name: str
    fits: Callable[[Fields], bool]
    read: Callable[[Fields], list[Answer]]


def prompt_of(fields: Fields, output: str | None = None) -> str | None:
    """All that a record says the suspect was shown, as text; None if it says nothing.

    output: what it wrote, so that a conversation that goes on to it is cut before it; None: it may be any text.

    Raises:
        ShapeError: a field that should hold it holds a number, or a list of them.
    """
    parts = [_shown(name, fields[name], output) for name in PROMPTS if fields.get(name) is not None]
    parts.append(other_texts({name: fields[name] for name in DOCUMENTS if name in fields}, ()))
    return "\n".join(filter(None, parts)) or None


def _shown(name: str, value: Any, output: str | None) -> str:
    wanted = "a list of turns, each with 'role' and 'content'" if name in CONVERSATIONS else "a string"
    if isinstance(value, int | float) or (name != "prompt" and isinstance(value, list) and any(map(is_number, value))):
        raise ShapeError(not_wanted(name, wanted, value))
    if name in ("tools", "functions"):
        return every_text(value)
    if name in REQUESTS:
        value = _opened(value)
        if isinstance(value, Mapping) and answer_in(value) is not None:
            return ""
    if is_conversation(value):
        turns = turns_of(value)
        if by_suspect(turns[-1]) and output in (None, last_answer(turns)[0].text):
            turns = turns[:-1]
        return shown_in(turns)
    if not isinstance(value, Mapping) or (told := prompt_of(value, output)) is None:
        return shown_in(value)
    return "\n".join(filter(None, (told, other_texts(value, (*PROMPTS, *DOCUMENTS)))))


def _opened(value: Any) -> Any:
    """A value, or what it says if it is an object of JSON, or a stream of events, as text."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "data:")):
        found = whole(value)
        return value if found is None else found
    return value


def _ids_shown(fields: Fields) -> Any:
    """The prompt as token ids, if a completion was asked for with them."""
    for holder in (fields, *(_opened(fields.get(name)) for name in REQUESTS)):
        prompt = dig(holder, "prompt")
        if isinstance(prompt, list) and prompt and all(map(is_int, prompt)):
            return prompt
    return None


# answers of servers


def answer_in(fields: Fields) -> Fields | None:
    """A server's answer in a record: the record, or an object in it; None if there is none.

    A message by the suspect stands for an answer that holds it.
    """
    for one in (fields, *(_opened(fields.get(name)) for name in RESPONSES)):
        for holder in (one, dig(one, "body")):
            if isinstance(holder, list) and is_chunk(dig(holder, 0)):
                return joined(holder)
            if not isinstance(holder, Mapping):
                continue
            if _kind(holder) is not None:
                return holder
            if holder is not fields and isinstance(holder.get("role"), str) and by_suspect(holder):
                return {"choices": [{"message": holder, "finish_reason": holder.get("stop_reason")}]}
    return None


def _kind(answer: Fields) -> str | None:
    """What sort of answer this is, by its first choice."""
    choice = dig(answer, "choices", 0)
    if isinstance(dig(choice, "message"), Mapping):
        return "chat completions"
    if isinstance(dig(choice, "text"), str):
        return "completions"
    if isinstance(dig(answer, "message"), Mapping) and "done" in answer:
        return "chat answers"  # Ollama's
    if isinstance(dig(answer, "output", 0, "type"), str):
        return "responses"
    return None


def failed(fields: Fields) -> bool:
    """Whether a record says that the request failed, and holds no answer."""
    holders = (fields, *(_opened(fields.get(name)) for name in RESPONSES))
    wrong = any(error_in(one) or error_in(dig(one, "body")) for one in holders if isinstance(one, Mapping))
    return wrong and answer_in(fields) is None


def _of_server(name: str) -> Shape:
    def fits(fields: Fields) -> bool:
        answer = answer_in(fields)
        return answer is not None and _kind(answer) == name

    def read(fields: Fields) -> list[Answer]:
        answer = answer_in(fields)
        return [] if answer is None else of_choices(fields, answer)

    return Shape(name, fits, read)


def of_choices(fields: Fields, answer: Fields) -> list[Answer]:
    """The answers in a server's answer, one for each choice; fields: the record, which may hold the request."""
    choices = answer.get("choices")
    numbers = range(len(choices) if isinstance(choices, list) else 1)
    if wrong := next((wrong for i in numbers if (wrong := wrong_tokens(answer, i)) is not None), None):
        raise ShapeError(wrong)
    found = [said(answer, i) for i in numbers]
    ids = _ids_shown(fields)
    return [
        Answer(_written(one), None if ids else shown, None, ids, one.steps, one.stop, "\n".join(beside) or None)
        for number, one in enumerate(found)
        if _written(one) is not None
        for shown in (prompt_of(fields, one.text),)
        for beside in ([text for text in (shown if ids else None, shown_in_answer(answer, number)) if text],)
    ]


def _written(one: Said) -> str | None:
    """What the suspect wrote: its answer, or its reasoning if it came to no answer."""
    return one.text or one.reasoning or one.text


# dumps of vLLM and lm-eval


def _is_request_output(fields: Fields) -> bool:
    one = dig(fields, "outputs", 0) if isinstance(fields.get("outputs"), list) else None
    return isinstance(one, Mapping) and ("token_ids" in one or isinstance(one.get("text"), str))


def _of_request_output(fields: Fields) -> list[Answer]:
    shown, ids = prompt_of(fields), fields.get("prompt_token_ids")
    found = []
    for one in fields["outputs"]:
        text, tokens = dig(one, "text"), dig(one, "token_ids")
        if not isinstance(text, str) and tokens is None:
            raise ShapeError("an output needs 'text' or 'token_ids'")
        rows = dig(one, "logprobs")
        for number, row in enumerate(rows if isinstance(rows, list) else (), 1):
            if (wrong := wrong_field({"top_logprobs": row}, TOKEN)) is not None:
                raise ShapeError(f"token {number}: {wrong.replace('top_logprobs', 'logprobs')}")
        steps = _vllm_steps(tokens, rows)
        stop = dig(one, "finish_reason")
        found.append(Answer(text if isinstance(text, str) else None, shown, tokens, ids, steps, stop))
    return found


def _vllm_steps(tokens: Any, rows: Any) -> tuple[Step, ...]:
    """vLLM's `logprobs`: for each token of the output {"5": {"logprob": -1.5, "decoded_token": " the"}, ...}."""
    if not isinstance(rows, list) or not _is_list(tokens) or len(rows) != len(tokens):
        return ()
    steps = []
    for token, row in zip(tokens, rows, strict=True):
        row = row if isinstance(row, Mapping) else {}
        # in a table an object has the keys of all rows, most of them null
        named = [_vllm_token(key, one) for key, one in row.items() if one is not None]
        own = next((one for one in named if one.id == token), Token(id=int(token) if is_int(token) else None))
        steps.append(Step(own, tuple(one for one in named if one.logprob is not None)))
    return tuple(steps)


def _is_list(value: Any) -> bool:
    """Whether this is a list, or an array of a table."""
    return isinstance(value, list) or hasattr(value, "dtype")


def _vllm_token(key: Any, value: Any) -> Token:
    p = value if is_number(value) else dig(value, "logprob")
    name = dig(value, "decoded_token")
    number = int(key) if str(key).isascii() and str(key).isdigit() and len(str(key)) < 10 else None
    return Token(name if isinstance(name, str) else "", None, number, float(p) if is_logprob(p) else None)


def _of_lm_eval(fields: Fields) -> list[Answer]:
    arguments = fields.get("arguments")
    asked = list(arguments.values()) if isinstance(arguments, Mapping) else arguments
    asked = asked if isinstance(asked, list) else []
    first = [dig(one, "arg_0") if isinstance(one, Mapping) else dig(one, 0) for one in asked]
    beside = other_texts({str(i): one for i, one in enumerate(asked)}, ()), every_text(fields.get("doc"))
    found = []
    if not isinstance(fields["resps"], list):
        raise ShapeError(not_wanted("resps", "a list of lists of texts", fields["resps"]))
    for i, row in enumerate(fields["resps"]):
        shown = shown_in(first[i if i < len(first) else 0]) if first else None
        for text in row if isinstance(row, list) else [row]:
            if not isinstance(text, str):
                raise ShapeError(
                    "'resps' hold no text: the task asked for likelihoods", "use samples of generated text"
                )
            found.append(Answer(text, shown, beside="\n".join(filter(None, beside)) or None))
    return found


# tables and conversations


def _is_table(fields: Fields) -> bool:
    if not any(isinstance(fields.get(name), str) for name in ANSWERS):
        return False
    name = _conversation_in(fields)
    if name is None:
        return True
    try:
        turns = turns_of(fields[name])
    except ShapeError:
        return False  # the reader of conversations says what is wrong
    return not by_suspect(turns[-1])  # else the text beside it is what was hoped for


def _of_table(fields: Fields) -> list[Answer]:
    name = next(name for name in ANSWERS if isinstance(fields.get(name), str))
    return [Answer(fields[name], prompt_of({**fields, name: None}, fields[name]))]


def _is_split_conversation(fields: Fields) -> bool:
    return is_conversation(fields.get("completion")) or is_conversation(fields.get("response"))


def _of_split_conversation(fields: Fields) -> list[Answer]:
    name = "completion" if is_conversation(fields.get("completion")) else "response"
    answer, before = last_answer(turns_of(fields[name]))
    shown = [prompt_of(fields, answer.text) or "", shown_in(list(before))]
    return [Answer(answer.text, "\n".join(filter(None, shown)) or None)]


def _conversation_in(fields: Fields) -> str | None:
    return next((name for name in CONVERSATIONS if is_conversation(fields.get(name))), None)


def _of_conversation(fields: Fields) -> list[Answer]:
    name = _conversation_in(fields)
    assert name is not None
    answer, before = last_answer(turns_of(fields[name]))
    rest = prompt_of({key: value for key, value in fields.items() if key != name}) or ""
    return [Answer(answer.text, "\n".join(filter(None, (rest, shown_in(list(before))))) or None)]


STREAM: Final = Shape("streamed chunks", is_chunk, lambda fields: of_choices(fields, joined([fields])))

SHAPES: Final = (
    STREAM,
    *map(_of_server, ("chat completions", "completions", "chat answers", "responses")),
    Shape("vLLM outputs", _is_request_output, _of_request_output),
    Shape("lm-eval samples", lambda fields: "resps" in fields, _of_lm_eval),
    Shape("prompts and answers", _is_table, _of_table),
    Shape("conversations in two parts", _is_split_conversation, _of_split_conversation),
    Shape("conversations", lambda fields: _conversation_in(fields) is not None, _of_conversation),
)
"""Tried in this order."""
