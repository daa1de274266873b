"""All targets by their names, and the folder that they begin with."""

from __future__ import annotations

from typing import Final

from tests import small
from tests.fuzz import answers, evidence, records
from tests.fuzz.engine import Place, Target

TARGETS: Final[dict[str, Target]] = records.TARGETS | answers.TARGETS | evidence.TARGETS


def prepare(place: Place) -> None:
    """Fills the folder of a place: a tokenizer, and its mark."""
    place.folder.mkdir(exist_ok=True)
    small.mark(place.folder / "m", small.tokenizer(place.folder / "tokenizer"))
