"""How far a long piece of work has come."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Update = Callable[[int, int | None], None]
"""Called with what is done, and of how much; None: unknown."""

Stages = Callable[[str, str], AbstractContextManager[Update]]
"""Opened around each piece of work, with what is done (`reading the suspect`) and its unit (`texts`)."""


def silent(_what: str, _unit: str = "") -> AbstractContextManager[Update]:
    """Stages that say nothing."""
    return nullcontext(lambda _done, _total: None)


def count_up(update: Update, total: int) -> Callable[[int], None]:
    """Turns `so many more are done` into `so many of all are done`."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        update(done, total)

    return count
