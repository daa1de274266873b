"""How far a long piece of work has come."""

from __future__ import annotations

from collections.abc import Callable

Update = Callable[[int, int | None], None]
"""Called with what is done, and of how much; None: unknown."""


def count_up(update: Update, total: int) -> Callable[[int], None]:
    """Turns `so many more are done` into `so many of all are done`."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        update(done, total)

    return count
