"""Schemes: how a mark tilts probabilities, and what is scored.

A scheme reads some coins from the sixteen bits that the PRF gives for a pair. Under the null they are independent, and
each comes up with the probability `rate`. What a test counts are the `hits` of a pair: how many of its `coins` came up,
binomially distributed with `coins` tries of probability `rate`. The marks of other engines (`engines`) are read in the
same way, and have PRFs of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from watermark.errors import MarkError
from watermark.io.fields import Types
from watermark.schemes.engines import ENGINES, Engine
from watermark.schemes.greenlist import GreenList
from watermark.schemes.tournament import Tournament

Scheme: TypeAlias = GreenList | Tournament | Engine
SCHEMES: Final[tuple[type[GreenList], type[Tournament]]] = (GreenList, Tournament)
DEFAULT: Final[Scheme] = GreenList()
__all__ = ["DEFAULT", "NAMES", "SCHEMES", "GreenList", "Scheme", "Tournament", "field_types", "from_fields", "kind_of"]

NAMES: Final = tuple(kind.name for kind in SCHEMES)


def kind_of(name: object) -> type[Scheme] | None:
    """The scheme of this name, ours or another engine's, or None."""
    kinds: tuple[type[Scheme], ...] = (*SCHEMES, *ENGINES)
    return next((kind for kind in kinds if kind.name == name), None)


def field_types(name: object) -> Types:
    """Which fields a mark file or a card of this scheme has beside those of every mark."""
    kind = kind_of(name)
    return kind.FIELDS if kind is not None else {}


def from_fields(fields: Mapping[str, Any]) -> Scheme:
    """The scheme that a mark file or a card describes. Raises MarkError if it is unknown or a parameter is wrong."""
    kind = kind_of(fields.get("scheme"))
    if kind is None:
        raise MarkError(f"not a scheme of this version, which knows {' and '.join(NAMES)}")
    parameters: dict[str, Any] = {name: fields.get(name) for name in kind.FIELDS}
    return kind(**parameters)
