"""Secrets that nothing shows by accident: no repr, no traceback with local variables, no pickle."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

from watermark.errors import MarkError

P = ParamSpec("P")
R = TypeVar("R")


class _Hidden:
    def __repr__(self) -> str:
        return f"<{type(self).__name__}, hidden>"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise no_pickle()

    def __deepcopy__(self, _memo: object) -> Any:
        return self

    def __copy__(self) -> Any:
        return self


class Secret(_Hidden, bytes):
    """Bytes that must not be shown, or anything derived from them. `.hex()` and slices are the plain value.

    >>> key = Secret(b"12345678")
    >>> key, f"{key}", key.hex()
    (<Secret, hidden>, '<Secret, hidden>', '3132333435363738')
    """


class SecretText(_Hidden, str):
    """The same for text, such as a secret in hex, or a file that holds one."""

    def __new__(cls, text: str) -> SecretText:
        return str.__new__(cls, str.__str__(text))  # a `SecretText` says nothing of itself


class SecretDict(_Hidden, dict[Any, Any]):
    """The same for a dictionary, such as one of tensors that hold keys."""


def no_pickle() -> MarkError:
    """What to raise where a pickle would hold a secret, or go without what it needs."""
    return MarkError(
        "a secret is not pickled: who could read the pickle could read it",
        "load the mark where it is needed, with `Mark.load`, or send `mark.dumps()` on purpose",
    )


def sealed(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose local variables are as secret as a key: an exception from it leaves without its frames."""

    @wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return function(*arguments, **named)
        except BaseException as error:
            del arguments, named  # this frame is one, too
            raise error.with_traceback(None)  # noqa: B904

    return run
