"""How far a long piece of work has come: one convention for every function that takes `progress`."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None], None]
"""Called with how much is done, and of how much in all; None: not known."""


def silent(_done: int, _total: int | None) -> None:
    """Show nothing."""
