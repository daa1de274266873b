"""Streams: answers that come in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from verify.data.dialects import dig
from watermark.io.fields import is_int
from watermark.io.records import Record

Fields = Mapping[str, Any]

_OPEN: Final = 256  # answers whose chunks come in turns


def is_chunk(fields: Any) -> bool:
    """Whether a record is a piece of a streamed answer."""
    choice = dig(fields, "choices", 0)
    if isinstance(dig(choice, "text"), str):  # of a plain completion
        return "finish_reason" in choice and choice["finish_reason"] is None and isinstance(fields.get("id"), str)
    return isinstance(dig(choice, "delta"), Mapping)


def joined(chunks: Sequence[Any]) -> dict[str, Any]:
    """The answer that the chunks of a stream add up to, choice by choice."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        given = dig(chunk, "choices")
        for choice in given if isinstance(given, list) else ():
            number = dig(choice, "index")
            held = choices.setdefault(number if is_int(number) else 0, {})
            delta = dig(choice, "delta")
            for name in ("content", "reasoning_content", "reasoning"):
                if isinstance(piece := dig(delta, name), str):
                    message = held.setdefault("message", {})
                    message[name] = message.get(name, "") + piece
            if isinstance(piece := dig(choice, "text"), str):
                held["text"] = held.get("text", "") + piece
            given = dig(choice, "logprobs")
            for name, row in given.items() if isinstance(given, Mapping) else ():
                if isinstance(row, list):
                    held.setdefault("logprobs", {}).setdefault(name, []).extend(row)
            held["finish_reason"] = dig(choice, "finish_reason") or held.get("finish_reason")
    return {"choices": [choices[number] for number in sorted(choices)]}


def is_piece(fields: Fields) -> bool:
    """Whether a record belongs to a stream of chunks, of which some have no choices, or only an end."""
    choices = fields.get("choices")
    return isinstance(choices, list) and all(isinstance(one, Mapping) and "message" not in one for one in choices)


class Chunks:
    """Answers that come chunk by chunk, several at a time."""

    def __init__(self) -> None:
        self.open: dict[str, tuple[Record, list[Fields]]] = {}
        self.going: dict[str, set[str]] = {}  # choices that have not ended

    def add(self, record: Record) -> Iterator[tuple[Record, list[Fields]]]:
        """Takes a chunk; gives the answers that are whole now, or that have waited for too long.

        An answer is the record of its first chunk, and all its chunks.
        """
        name, choices = str(record.fields.get("id")), record.fields["choices"]
        if not choices:
            return  # what the answer cost, say, behind its end
        self.open.setdefault(name, (record, []))[1].append(record.fields)
        going = self.going.setdefault(name, set())
        for choice in choices:
            number = str(dig(choice, "index"))
            going.add(number)
            if dig(choice, "finish_reason"):
                going.remove(number)
        if not going or len(self.open) > _OPEN:
            yield self._whole(name if not going else next(iter(self.open)))

    def rest(self) -> Iterator[tuple[Record, list[Fields]]]:
        """The answers whose end never came."""
        for name in list(self.open):
            yield self._whole(name)

    def _whole(self, name: str) -> tuple[Record, list[Fields]]:
        del self.going[name]
        return self.open.pop(name)
