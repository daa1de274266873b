"""Work in several pieces: which one is under way, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from watermark.progress import Progress

Stages = Callable[[str, str], AbstractContextManager[Progress]]
"""Opened around each piece of work, with what is done (`reading the suspect`) and its unit (`texts`)."""


def silent(_what: str, _unit: str = "") -> AbstractContextManager[Progress]:
    """Stages that show nothing."""
    return nullcontext(lambda _done, _total: None)
