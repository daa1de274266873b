"""Conversations in chat logs and training data: what the suspect wrote last, and all that it was shown before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from verify.data.dialects import Said, said
from watermark.io.fields import not_wanted

SUSPECT: Final = ("assistant", "gpt", "chatgpt", "model", "bot", "ai")
"""Names under which the suspect speaks, in the dialects of chats and of ShareGPT."""

_TEXTS: Final = (
    "content", "value", "text", "parts", "thinking", "reasoning_content", "reasoning", "input", "output", "arguments",
    "tool_calls", "function", "function_call",
)  # fmt: skip


QUIET: Final = 64
"""Characters of a text under another name that say how to answer, or of what kind something is, and show nothing."""

_MEDIA: Final = frozenset(("image_url", "image", "images", "video", "video_url", "audio", "input_audio"))


class ShapeError(ValueError):
    """A record has the shape of its file, and something is wrong within it; the message says what."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def turns_of(value: Any) -> list[Mapping[str, Any]]:
    """The turns of a conversation: a list of objects, or an object of lists, as older tables hold it.

    Raises:
        ShapeError: it is neither, its lists differ in length, or a turn names nobody.
    """
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        names, columns = list(value), list(value.values())
        if len(set(map(len, columns))) > 1:
            raise ShapeError("the columns of a conversation must be equally long")
        value = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ShapeError("a conversation must be a list of turns")
    for turn in value:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role", turn.get("from")), str):
            raise ShapeError("a turn of a conversation must have a 'role' (or 'from') and a 'content' (or 'value')")
    return list(value)


def is_conversation(value: Any) -> bool:
    """Whether a value looks like a conversation: its first turn is one."""
    if isinstance(value, Mapping):
        return any(isinstance(value.get(name), list) and value[name] for name in ("role", "from"))
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and isinstance(first.get("role", first.get("from")), str)


def by_suspect(turn: Mapping[str, Any]) -> bool:
    """Whether the suspect wrote this turn."""
    return turn.get("role", turn.get("from")).lower() in SUSPECT


def last_answer(turns: Sequence[Mapping[str, Any]]) -> tuple[Said, Sequence[Mapping[str, Any]]]:
    """The last turn that the suspect wrote, and all turns before it, its own earlier ones among them.

    Raises:
        ShapeError: it wrote none.
    """
    for i in reversed(range(len(turns))):
        if by_suspect(turns[i]) and not any(turns[i].get(name) is True for name in ("prefix", "partial", "prefill")):
            return _written(turns[i]), turns[:i]
    raise ShapeError("no turn of the conversation is by the assistant")


def _written(turn: Mapping[str, Any]) -> Said:
    name = next((name for name in ("content", "value", "text", "parts") if name in turn), "content")
    text = turn.get(name)
    if not (text is None or isinstance(text, str | Sequence)):
        raise ShapeError(f"the assistant's last turn: {not_wanted(name, 'a string, or a list of parts', text)}")
    if name == "content":
        return said({"choices": [{"message": turn}]})
    return Said(text if isinstance(text, str) else shown_in(turn.get("parts")) or None)


def shown_in(value: Any) -> str:
    """All text in a message, a part of one, or a list of them: whatever a model was shown of it.

    A picture or a sound is left out. Calls of tools and their results are text, and so is a longer text under a name
    that is not known.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = [value[name] for name in _TEXTS if value.get(name) is not None] + [other_texts(value, _TEXTS)]
    if isinstance(value, Sequence):
        return "\n".join(text for one in value if (text := shown_in(one)))
    return ""


def other_texts(fields: Mapping[Any, Any], known: Collection[str]) -> str:
    """The longer texts under other names than those that are known: a passage, a document, an example."""
    rest = [value for name, value in fields.items() if name not in known and name not in _MEDIA]
    return "\n".join(text for value in rest if len(text := every_text(value)) > QUIET)


def every_text(value: Any) -> str:
    """All text in a value, such as a description of tools, wherever it stands; no data of pictures and sounds."""
    if isinstance(value, str):
        return "" if value.startswith(("data:image", "data:audio", "data:video")) else value
    if isinstance(value, Mapping):
        value = [one for name, one in value.items() if name not in _MEDIA]
    return "\n".join(text for one in value if (text := every_text(one))) if isinstance(value, list) else ""
