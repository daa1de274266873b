"""Whether the token ids of records are the mark's: what they spell is held against the text beside them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watermark import InputError, Mark, TokenizerError
from watermark.io.fields import is_text
from watermark.io.records import Record
from watermark.tokenizers import Tokenizer, load_for


@dataclass
class Drift:
    """Holds records that have both `output` and `output_ids` against each other; one by one, as they are read.

    Where the mark's tokenizer is not at hand, nothing is compared.

    Attributes:
        mark: whose tokenizer spells the ids.
        tokenizer: its folder, if not where the mark says.
        compared: records with both.
        differing: those of them whose ids spell another text.
        first: the first of these.
    """

    mark: Mark
    tokenizer: str | Path | None = None
    compared: int = 0
    differing: int = 0
    first: Record | None = None
    _known: Tokenizer | None = None
    _missing: bool = False

    def look(self, record: Record, ids: list[int]) -> None:
        """Compare one record, whose output has these ids."""
        text: Any = record.fields.get("output")
        if record.fields.get("output_ids") is None or self._missing or not ids or not is_text(text):
            return
        try:
            self._known = self._known or load_for(self.mark, self.tokenizer)
        except TokenizerError:
            self._missing = True
            return
        self.compared += 1
        # where a token's name told no id, another stands for it in the answers of a sequential run
        loosely = record.fields.get("sequential") is True
        if not _spells(self._known, ids, text) and not (loosely and _mostly(self._known, ids, text)):
            self.differing += 1
            self.first = self.first or record


def _spells(tokenizer: Tokenizer, ids: list[int], text: str) -> bool:
    try:
        return any(tokenizer.decode(ids, skip).strip() == text.strip() for skip in (True, False))
    except TokenizerError:
        return True  # ids that are none are an error elsewhere


def _mostly(tokenizer: Tokenizer, ids: list[int], text: str) -> bool:
    """Whether half of the tokens of a text or more are among some ids."""
    ours = Counter(tokenizer.encode(text))
    return 2 * (ours & Counter(ids)).total() >= max(ours.total(), len(ids))


def drift_notes(compared: int, differing: int, first: tuple[Path, int] | None) -> tuple[str, ...]:
    """What a result says of records whose ids spell another text. Raises InputError if all of them do.

    first: file and line of the first of them.
    """
    if not differing or first is None:
        return ()
    if differing == compared:
        raise InputError(
            *first,
            "'output_ids' do not spell 'output' with the mark's tokenizer",
            "ids of another tokenizer are other tokens: leave the ids out, and the text is tokenized anew",
        )
    where = f"{first[0]}:{first[1]}"
    return (
        f"Of {compared} records with ids and text, {differing} have ids that spell another text than `output`, the "
        f"first at {where}: the ids were tested.",
    )
