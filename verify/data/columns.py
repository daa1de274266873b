"""Columns: where the fields of records are, if their shape is not known, and what to say of such records."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from verify.data.dialects import dig
from verify.data.formats import NAMES, PROMPTS
from verify.data.sources import names_in
from watermark import UsageError
from watermark.io.fields import is_text, kind_in_words
from watermark.io.records import Record, RecordError

Columns = Mapping[str, str]
"""Our name of a field: the name, or the dotted path, that it has in the records of a file."""

COLUMNS: Final = (
    "id", "prompt", "prompt_ids", "output", "output_ids", "messages", "conversations", "request", "response",
)  # fmt: skip
"""What `columns` may name."""

KEPT: Final = ("id", "ended", "mark", "marked", "sampled", "sequential")
"""What a record says of itself, whatever its shape."""

_ANSWER: Final = "a string, or the answer of a server"
_TURNS: Final = "a list of turns, each with 'role' and 'content'"
_HOLDERS: Final[Mapping[str, str]] = {
    "output": _ANSWER, "output_ids": "a list of token ids", "response": _ANSWER, "completion": _ANSWER,
    "answer": _ANSWER, "messages": _TURNS, "conversations": _TURNS, "conversation": _TURNS,
    "choices": "a list of objects, each with 'message' or 'text'",
    "outputs": "a list of objects, each with 'text' or 'token_ids'",
}  # fmt: skip
"""Fields that hold what the suspect wrote, and what they must be."""

_NAMED: Final = 20  # fields in a hint
_LIKELY: Final = ("text", "content", "generation", "generated_text", "model_output", "reply")


def check_columns(columns: Columns | None) -> None:
    """Raises UsageError if a field is named that records do not have, or no output."""
    if columns is None:
        return
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise UsageError(f"`columns` names '{unknown[0]}'", f"it may name {', '.join(COLUMNS)}")
    if not set(columns) & {"output", "output_ids", "messages", "conversations", "response"}:
        raise UsageError("`columns` does not say where the output is", "such as output=text")


def wanted(columns: Columns, keep: Collection[str]) -> frozenset[str]:
    """What is to be read of a record."""
    tops = {path.split(".")[0] for path in columns.values()} | set(columns.values())
    return frozenset(tops | set(KEPT) | set(keep))


def mapped(record: Record, columns: Columns, keep: Collection[str]) -> Record:
    """The record with the fields that `columns` names, where they are there, and with what it says of itself."""
    fields = record.fields
    found = {name: fields[name] for name in (*KEPT, *keep) if name in fields}
    found |= {name: value for name, path in columns.items() if (value := _at(fields, path)) is not None}
    return Record(record.path, record.line, found)


def _at(value: Any, path: str) -> Any:
    if isinstance(value, Mapping) and path in value:
        return value[path]
    for step in path.split("."):
        value = dig(value, int(step) if isinstance(value, list) and step.isdecimal() and len(step) < 9 else step)
    return value


def unknown(record: Record, columns: Columns | None) -> RecordError:
    """What is wrong with a record of no known shape: what it has, and what to say."""
    names = _names_of(record)
    message = _wrong_holder(record, columns)
    if message is None and columns is not None:
        message = f"the record has no {_listed(sorted(columns.values()))}: no output is found with these `columns`"
    elif message is None:
        message = "the record has neither 'output_ids' nor 'output', and is of no other shape that is known"
    if columns is not None:
        return record.error(message, f"the file has {_listed(names)}")
    likely, has = _likely(record, names), f"it has {_listed(names)}"
    return record.error(message, f"{has}; say with `columns` which is what: output={likely}" if likely else has)


def _wrong_holder(record: Record, columns: Columns | None) -> str | None:
    """What is wrong with the field that should hold the output; None: there is none."""
    paths = {name: name if columns is None else columns.get(name) for name in _HOLDERS}
    named = {path: _HOLDERS[name] for name, path in paths.items() if path is not None}
    held = {path: value for path in named if (value := _at(record.fields, path)) is not None}
    for path, value in held.items():
        return f"'{path}' must be {named[path]}; it is {kind_in_words(value)}"
    there = record.fields.keys() | set(names_in(record.path))
    return next((f"the record has no output: '{path}' is null" for path in named if path in there), None)


def of_another_shape(record: Record, shape: str) -> RecordError:
    """What is wrong with a record that is not like those before it; shape: what they are."""
    message = f"the records before are {shape}, and this one is not"
    return record.error(message, f"it has {_listed(_names_of(record))}; records of several shapes need a file each")


def _names_of(record: Record) -> list[str]:
    """The names of a record's fields, of those within an object with dots; of a table all columns."""
    columns = names_in(record.path)
    if columns:
        return columns
    names: list[str] = []
    for name, value in record.fields.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) and value else [name]
    return names


def _listed(names: list[str]) -> str:
    shown = ["".join(c for c in name if c.isprintable())[:60] for name in names[:_NAMED]]
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*map(repr, shown), *more]) or "no fields"


def _likely(record: Record, names: list[str]) -> str | None:
    """The field that most likely holds the output: one of a usual name, or the longest text."""
    last = {name.rpartition(".")[2]: name for name in reversed(names)}
    if usual := [last[name] for name in _LIKELY if name in last]:
        return usual[0]
    others = [name for name in names if name.partition(".")[0] not in (*PROMPTS, *NAMES)]
    texts = {name: value for name in others if is_text(value := _at(record.fields, name))}
    return max(texts, key=lambda name: len(texts[name]), default=None)
