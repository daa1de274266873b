"""Named errors. Each carries a one-line hint and the exit code the command line uses."""

from __future__ import annotations

from pathlib import Path


class StillmarkError(Exception):
    """Base of every error a user can cause or fix.

    `hint` is one line that says what to do next. `exit_code` is the process's exit status when the
    error ends a command: 1 for input and environment, 2 for usage.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.hint)


class MarkError(StillmarkError):
    """A mark or card that cannot be made, read or trusted."""


class TokenizerError(StillmarkError):
    """No tokenizer where one is needed, or one that is not the mark's."""


class ModelError(StillmarkError):
    """A model directory that cannot be loaded or does not fit the mark."""


class UsageError(StillmarkError):
    """Arguments that contradict each other, lie outside their range, or do not apply to what was named."""

    exit_code = 2


def within(name: str, value: float | None, low: float, high: float, *, first: bool = False, last: bool = False) -> None:
    """Raises UsageError unless a number, the argument `name`, lies between two others; None is left alone.

    first: `low` itself is allowed; last: `high` is.

    >>> within("share", 1.0, 0, 1, last=True)
    """
    if value is None or low < value < high or (first and value == low) or (last and value == high):
        return
    bounds = f"{'at least' if first else 'more than'} {low:g}"
    if high < float("inf"):
        bounds += f" and {'at most' if last else 'less than'} {high:g}"
    raise UsageError(f"`{name}` must be {bounds}, not {value:g}")


class ApiError(StillmarkError):
    """An endpoint that cannot be used: unreachable, unwilling, or not the same model throughout."""


class MissingExtraError(StillmarkError, ImportError):
    """A package that is needed here and belongs to an extra that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is needed for this and not installed", f"pip install 'stillmark[{extra}]'")
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.package, self.extra)


class InputError(StillmarkError):
    """A malformed input file; the message starts with `file:line`.

    `path` is the file, `line` counts from 1 (rows of a Parquet file too); 0 means the whole file. `message` is without
    them.
    """

    def __init__(self, path: str | Path, line: int, message: str, hint: str | None = None) -> None:
        where = f"{path}:{line}" if line else f"{path}"
        super().__init__(f"{where}: {message}", hint)
        self.path = Path(path)
        self.line = line
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.line, self.message, self.hint)
