"""The values of a result as it stands in JSON, each held against its type: files come from many hands.

Whatever is wrong raises a StillmarkError that names the value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from watermark import StillmarkError
from watermark.io.fields import is_number

T = TypeVar("T")


WANTED: Final = "name a result.json that `stillmark verify --out` wrote, or what a test printed with --json"


MOST: Final = 1000
"""Sentences, tokens or pairs in one list of a result."""


_LARGE: Final = 1e15
"""Larger numbers are in no result."""


_KINDS: Final[Mapping[type, str]] = {
    str: "text", int: "whole number", bool: "true or false", dict: "object", list: "list",
}  # fmt: skip


def typed(value: Any, kind: type[T], name: str) -> T:
    """A value that is of this kind. name: what it is called in the message."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise StillmarkError(f"this is no result of Stillmark: '{name[:40]}' is no {_KINDS[kind]}", WANTED)
    return value


def _there(found: Mapping[str, Any], name: str) -> Any:
    if name not in found:
        raise StillmarkError(f"this is no result of Stillmark: it has no '{name}'", WANTED)
    return found[name]


def text_of(found: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A string; default: where there is none (None: there must be one)."""
    return default if default is not None and name not in found else typed(_there(found, name), str, name)


def number_of(found: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A finite number of a reasonable size; default: as for `text_of`."""
    if default is not None and name not in found:
        return default
    value = _there(found, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGE:
        raise StillmarkError(f"this is no result of Stillmark: '{name}' is no number", WANTED)
    return float(value)


def log10_of(found: Mapping[str, Any], name: str) -> float:
    """log10 of a probability."""
    if (value := number_of(found, name)) > 0:
        raise StillmarkError(f"this is no result of Stillmark: '{name}' is no probability", WANTED)
    return value


def check_p(found: Mapping[str, Any], where: str) -> None:
    """Raises StillmarkError where a p-value and its logarithm contradict each other. where: whose they are."""
    log10 = log10_of(found, "log10_pvalue")
    if "pvalue" in found:
        p = number_of(found, "pvalue")
        if not math.isclose(p, 10**log10, rel_tol=1e-6, abs_tol=1e-300):
            raise contradiction(where, f"pvalue {p:g} and log10_pvalue {log10:g}")


def contradiction(where: str, what: str) -> StillmarkError:
    """What is wrong with a result whose values do not fit each other."""
    return StillmarkError(
        f"this result of {where[:80]} contradicts itself: {what}", "it was changed: make the report of the original"
    )


def level_of(found: Mapping[str, Any]) -> float:
    """The level `alpha`, between 0 and 1."""
    if not 0 < (value := number_of(found, "alpha")) < 1:
        raise StillmarkError("this is no result of Stillmark: 'alpha' is no level", WANTED)
    return value


def object_of(found: Mapping[str, Any], name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object; default: as for `text_of`."""
    return default if default is not None and name not in found else typed(_there(found, name), dict, name)


def list_of(found: Mapping[str, Any], name: str, most: int = MOST) -> list[Any]:
    """A list, empty where there is none, of so many at most."""
    if len(value := typed(found.get(name, []), list, name)) > most:
        raise StillmarkError(f"this is no result of Stillmark: '{name}' holds more than {most:,}", WANTED)
    return value


def texts_of(found: Mapping[str, Any], name: str) -> list[str]:
    """A list of strings, empty where there is none."""
    return [typed(one, str, name) for one in list_of(found, name)]


CLOSE: Final = 1e-9
"""Difference of numbers, relative or absolute, that rounding may make."""


def same(claimed: Any, found: Any) -> bool:
    """Whether two values are alike; numbers, and lists of them, up to rounding.

    >>> same([0.1 + 0.2], [0.3]), same("0.3", 0.3)
    (True, False)
    """
    if isinstance(found, list):
        return isinstance(claimed, list) and len(claimed) == len(found) and all(map(same, claimed, found))
    if not is_number(claimed) or not is_number(found):
        return bool(claimed == found)
    return math.isclose(float(claimed), float(found), rel_tol=CLOSE, abs_tol=CLOSE)
