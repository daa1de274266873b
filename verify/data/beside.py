"""Text under names that nobody knows: whatever a record holds beside the answer may have been shown to the suspect.

A list of names under which people keep what a model was shown is never complete. So all longer text counts as shown,
but for what the suspect itself wrote under the names here, told again or thought. Where it was not shown, this costs
power.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sized
from typing import Any, Final

from verify.data.conversations import QUIET, every_text
from verify.data.dialects import dig

WRITTEN: Final = frozenset(
    (
        "reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks", "thoughts", "refusal",
        "output_text", "generated_text", "model_output", "generation", "raw_output", "full_output", "output_raw",
        "completion_text", "response_text", "answer_text", "raw_response", "filtered_resps", "target", "chosen",
        "rejected", "logprobs", "prompt_logprobs", "token_logprobs", "top_logprobs", "completion_probabilities",
        "tokens", "usage", "error", "changed", "request", "__verbose", "provider_specific_fields", "parsed", "audio",
    )
)  # fmt: skip
"""What the suspect wrote, said of its tokens, or was not shown."""

SHOWN_IDS: Final = ("input_ids", "prompt_token_ids", "prompt_tokens", "context_token_ids", "source_ids")
"""Names under which token ids may stand for what a model was shown."""

_MESSAGE: Final = WRITTEN | {"role", "content", "text", "tool_calls", "function_call", "tool_call_id", "id"}
_ANSWER: Final = WRITTEN | {
    *("id", "object", "created", "created_at", "model", "choices", "message", "response", "content", "text", "output"),
    *("system_fingerprint", "generation_settings", "timings", "role", "type", "stop_reason", "stopping_word"),
}
_BY_SUSPECT: Final = ("message", "reasoning", "function_call", "custom_tool_call", "computer_call")
"""Items of an answer of the responses API that the suspect wrote."""


def texts_beside(fields: Mapping[str, Any], known: Collection[str]) -> dict[str, str]:
    """The text in fields of other names than the known ones, by name; nothing if it is short.

    A word, a name, an identifier or a digest is no text.

    >>> texts_beside({"output": "So it is.", "model": "m-1", "passages": ["A long text. " * 9]}, {"output"}).keys()
    dict_keys(['passages'])
    """
    found = {
        name: text
        for name, value in fields.items()
        if name not in known and name not in WRITTEN and not _is_name(value) and not _is_answer(value)
        if (text := every_text(value))
    }
    return found if sum(map(len, found.values())) > QUIET else {}


def ids_beside(fields: Mapping[str, Any]) -> str | None:
    """The field that holds token ids of what was shown, where no prompt is named; None: there is none."""
    if fields.get("prompt") or fields.get("prompt_ids") is not None:
        return None
    lists = (name for name in SHOWN_IDS if isinstance(fields.get(name), Sized) and not isinstance(fields[name], str))
    return next((name for name in lists if len(fields[name])), None)


def note_on_beside(names: Collection[str]) -> str:
    """What a result says of fields whose text was taken for shown."""
    first = sorted(names)[:8]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return (
        f"Text in the fields {', '.join(map(repr, first))}{more} was taken for shown to the suspect: what it copied of "
        "that does not count. If it was not shown, say with `columns` which fields hold prompt and output."
    )


def shown_in_answer(answer: Mapping[str, Any], number: int) -> str:
    """What a server's answer tells of what the suspect was shown: instructions, citations, results of tools."""
    choice = dig(answer, "choices", number)
    parts = [texts_beside(answer, _ANSWER)]
    for one in (dig(choice, "message"), dig(answer, "message"), choice):
        parts += [texts_beside(one, _MESSAGE | {"message"})] if isinstance(one, Mapping) else []
    items = answer.get("output")
    rest = [one for one in items if dig(one, "type") not in _BY_SUSPECT] if isinstance(items, list) else []
    return "\n".join([*(text for part in parts for text in part.values()), *filter(None, map(every_text, rest))])


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= QUIET and len(value.split()) < 2


def _is_answer(value: Any) -> bool:
    return dig(value, "choices", 0) is not None
