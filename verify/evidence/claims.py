"""What a bundle's result claims. It comes from strangers: a value of another type is as if it were not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verify.evidence.statement import Statement
from watermark.io.fields import is_text


def tests_of(said: Statement) -> list[dict[str, Any]]:
    """The tests that were made."""
    return [one for one in list_in(said.result, "tests") if isinstance(one, dict)]


def list_in(fields: Mapping[str, Any], name: str) -> list[Any]:
    """A list; else an empty one."""
    value = fields.get(name)
    return value if isinstance(value, list) else []


def object_at(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object; else an empty one."""
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def text_in(fields: Mapping[str, Any], name: str) -> str:
    """A string; else an empty one."""
    value = fields.get(name)
    return str(value) if is_text(value) else ""
