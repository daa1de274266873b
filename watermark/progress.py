"""How far a long piece of work has come: one convention for every function that takes `progress`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

Progress = Callable[[int, int | None], None]
"""Called with how much is done, and of how much in all; None: not known."""

Stages = Callable[[str, str], AbstractContextManager[Progress]]
"""Opened around each piece of work, with what is done (`reading the suspect`) and its unit (`texts`)."""


def silent(_done: int, _total: int | None) -> None:
    """Show nothing."""


_shown_by: ContextVar[Stages] = ContextVar("shown_by", default=lambda _what, _unit: nullcontext(silent))


@contextmanager
def shown_by(stages: Stages) -> Iterator[None]:
    """Within, `doing` shows its work by these stages: for a program with one display, such as the command line."""
    token = _shown_by.set(stages)
    try:
        yield
    finally:
        _shown_by.reset(token)


def doing(what: str) -> AbstractContextManager[Progress]:
    """Around work that takes seconds deep inside other work and has no units, such as loading a model.

    >>> with doing("loading the teacher"):
    ...     pass
    """
    return _shown_by.get()(what, "")
