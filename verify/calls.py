"""What was called, on which files, by which versions: results of public tests note it, so that they can be repeated."""

from __future__ import annotations

import importlib.metadata
import inspect
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from verify.results import MOST_ALPHA
from watermark import InputError, Mark, ModelError
from watermark.errors import within
from watermark.io import files
from watermark.models import model_digest

PACKAGES: Final = ("stillmark", "numpy", "scipy", "tokenizers", "torch", "transformers")
UNREAD: Final = frozenset({"mark", "mark_path", "order", "tokenizer", "record", "out", "plan", "paths"})
"""Parameters whose files are no evidence, are too large to be read once more (a corpus), or are the owner's alone."""


@dataclass(frozen=True)
class Call:
    """One call of a public function.

    Attributes:
        function: its name in `verify`.
        arguments: those that were given, as JSON; what is no file, number or word is described.
        date: the day (UTC), as YYYY-MM-DD.
        versions: of the packages that took part, and of Python.
        digests: SHA-256 of every file and model folder that was named as evidence, and of the answers that were kept,
            by path.
    """

    function: str
    arguments: Mapping[str, Any]
    date: str
    versions: Mapping[str, str]
    digests: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "function": self.function,
            "arguments": dict(self.arguments),
            "date": self.date,
            "versions": dict(self.versions),
            "digests": dict(self.digests),
        }


class Noting(Protocol):
    """A result that keeps the call which gave it."""

    def noting(self, call: Call) -> Self: ...


P = ParamSpec("P")
R = TypeVar("R", bound=Noting)


def noted(function: Callable[P, R]) -> Callable[P, R]:
    """A public test whose results say how they came about, and which takes no absurd `alpha`."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        given = dict(signature.bind(*arguments, **named).arguments)
        check_alpha(given.get("alpha"))
        result = function(*arguments, **named)
        return result.noting(call_of(function, given))

    return call


def check_alpha(alpha: float | None) -> None:
    """Raises UsageError for a level that is none, or above one half; None is left alone."""
    within("alpha", alpha, 0, MOST_ALPHA, last=True)


def call_of(function: Callable[..., Any], given: Mapping[str, Any], digests: Mapping[str, str] | None = None) -> Call:
    """A call, after it was made.

    Args:
        function: what was called.
        given: its arguments; those that say what they would say by default are left out.
        digests: more digests, by path, beside those of the files among the arguments.
    """
    defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    said = {name: one for name, one in given.items() if name != "progress" and not _is(one, defaults[name])}
    arguments = {name: _shown(one) for name, one in said.items()}
    if isinstance(labels := said.get("labels"), list | tuple):  # names of customers, and no paths
        arguments["labels"], said["labels"] = f"({len(labels)} labels in memory)", None
    known = dict(digests or {})
    named = [path for name, one in said.items() if name not in UNREAD for path in _files(one)]
    for one in said.values():
        if model := getattr(one, "base_url", None) and getattr(one, "model", None):
            arguments["model"] = model if not one.extra else "(more fields of each request)"
    return Call(
        function=function.__name__,
        arguments=arguments,
        date=datetime.now(UTC).date().isoformat(),
        versions=_versions(),
        digests={str(path): digest for path in named if (digest := known.get(str(path)) or _digest(path))} | known,
    )


def without_login(address: str) -> str:
    """An address without a name, password, query or fragment.

    >>> without_login("https://me:secret@api.example.com/v1?key=1")
    'https://api.example.com/v1'
    """
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _is(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, bool | int | float | str) and bool(value == default))


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return without_login(value) if value.startswith(("http://", "https://")) else value
    if isinstance(value, Mark):
        return value.file or f"(a mark in memory, commitment {value.commitment[:16]}...)"
    if isinstance(value, list | tuple) and all(isinstance(one, str | Path | Mark) for one in value):
        return [_shown(one) for one in value]
    if isinstance(value, dict) and all(isinstance(one, str) for one in (*value, *value.values())):
        return ",".join(f"{name}={one}" for name, one in value.items())
    url = getattr(value, "base_url", None)
    if isinstance(url, str):
        return without_login(url)
    return f"({type(value).__name__} in memory)"  # of outputs that were read, these may be a part


def _files(value: Any) -> Iterable[Path]:
    several = value if isinstance(value, list | tuple) else getattr(value, "files", None) or [value]
    for one in several:
        if isinstance(one, Path) or (isinstance(one, str) and len(one) < 4096 and "\0" not in one):
            yield Path(one)


def _digest(path: Path) -> str | None:
    """Of a file or a model folder; None for what is neither."""
    try:
        if path.is_dir():
            return model_digest(path)
        if not path.is_file():
            return None
        return files.sha256(path)
    except (OSError, InputError, ModelError):
        return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        if name == "stillmark" or name in sys.modules:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
