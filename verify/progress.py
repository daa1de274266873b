"""Work in several pieces: which one is under way, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from watermark.progress import Progress, Stages

__all__ = ["Stages", "on", "silent"]


def silent(_what: str, _unit: str = "") -> AbstractContextManager[Progress]:
    """Stages that show nothing."""
    return nullcontext(lambda _done, _total: None)


def on(what: str, names: str | Path | Sequence[str | Path]) -> str:
    """What is done, and on what: files and folders by their last name.

    >>> on("reading", Path("demo/outputs.jsonl")), on("reading", ["a/b.txt", "c.txt", "d.txt"])
    ('reading outputs.jsonl', 'reading b.txt and 2 more')
    """
    first, *rest = [names] if isinstance(names, str | Path) else [*names, ""][: max(1, len(names))]
    return f"{what} {Path(first).name or first}".rstrip() + (f" and {len(rest)} more" if rest else "")
