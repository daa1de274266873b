"""A server's names of tokens back to ids: by bytes, text, pieces, numbers. They are held against the text itself.

Names that are not those of the mark's tokenizer, and that spell the text, are translated (`verify.data.strings`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, TypeVar

from verify.data.dialects import Step, Token
from verify.data.logprobs import MIN_LOGPROB
from verify.data.spelling import byte_level, spelling
from verify.data.strings import TOKEN_ID, Restated, Restater
from watermark import TokenizerError
from watermark.tokenizers import AnyTokenizer

TELLING: Final = 8
"""Tokens of an answer from which on it tells how a server names tokens, and whether its log probabilities are any."""

MIN_AGREEMENT: Final = 0.5
"""Share of an answer's tokens that must be tokens of its text (a model may cut a text otherwise than its tokenizer);
of a short answer, of its names that must be known."""

ENOUGH: Final = 0.9
"""Share from which on no other way of reading the names is tried."""

NEARLY_ALL: Final = 0.98
"""Share of an answer's names that are known, from which on, with `ENOUGH`, it is in the mark's tokens. Of another
tokenizer some names are no token of the mark's, and those in common are cut out of the text in other places."""

Name = TypeVar("Name", str, bytes)

_SAMPLE: Final = "The quick brown fox jumps over 13 lazy dogs"
_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Told:
    """An answer's tokens as ids.

    Attributes:
        ids: of the tokens that were written; None: it cannot be told.
        tops: {id: log probability} of the likely tokens at each place.
        unknown: names of which no id can be told.
        fits: the names are of this tokenizer, or nearly so.
        exact: they are without a doubt.
    """

    ids: list[int | None]
    tops: list[dict[int, float]]
    unknown: int
    fits: bool = False
    exact: bool = False


class Vocabulary:
    """What a server's names of tokens mean in the mark's tokenizer.

    Servers name a token by its text after other tokens (" the"), by its text alone (which loses the space in
    tokenizers like Llama's), by its piece (`Ġthe`, `▁the`), or by its id. Which of these an answer does is found out by
    reading it in each way: the ids must be those of its text.
    """

    def __init__(self, tokenizer: AnyTokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size

    def told(self, steps: Sequence[Step], text: str) -> Told:
        """The ids of an answer's tokens. text: all that was written."""
        own = Counter(self.encode(text))
        best, agreement = Told([], [], 0), -1.0
        for name in (self._by_id, self._by_text, self._by_piece, self._alone):
            found = _read(steps, name)
            ids = [i for i in found.ids if i is not None]
            agrees = sum((own & Counter(ids)).values()) / max(1, len(steps))
            if (agrees, -found.unknown) > (agreement, -best.unknown):
                best, agreement = found, agrees
            if agrees >= ENOUGH and found.unknown <= len(steps):
                break
        named = 1 - best.unknown / max(1, sum(1 + len(step.top) for step in steps))
        known = agreement if len(steps) >= TELLING else named
        return replace(best, fits=known >= MIN_AGREEMENT, exact=agreement >= ENOUGH and named >= NEARLY_ALL)

    def translated(self, steps: Sequence[Step], text: str) -> Restated | None:
        """An answer whose tokens are named by strings of another tokenizer, in the mark's tokens.

        None if the names do not spell the text, no token begins where one of the mark's does, or the mark's tokenizer
        does not say where its tokens begin.
        """
        found = None if self.restater is None else self.restater.restate(steps, text)
        return found if found is not None and any(found.tops) else None

    @cached_property
    def restater(self) -> Restater | None:
        """Translates strings; None if the mark's tokenizer does not say where its tokens begin."""
        try:
            return Restater(spelling(self.tokenizer), self.size)
        except TokenizerError:
            return None

    def id_of(self, token: Token, *, by_number: bool) -> int | None:
        """A token's id by the text that it adds; by_number: by the id that the server names, where it names one."""
        found = self._by_id(token) if by_number else None
        return self._by_text(token) if found is None else found

    def encode(self, text: str) -> list[int]:
        """A text's ids, those in the mark's vocabulary."""
        return [i for i in self.tokenizer.encode(text, add_special_tokens=False) if i < self.size]

    def text(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        return str(self.tokenizer.decode(list(ids)))

    @cached_property
    def texts(self) -> dict[int, bytes]:
        """The bytes that each token adds to a text that it stands within."""
        pieces = [self._pieces.get(i, "") for i in self.tokenizer.encode(_SAMPLE, add_special_tokens=False)]
        for read in (byte_level, _sentence_piece):
            if b"".join(map(read, pieces)).strip() == _SAMPLE.encode():
                return {i: read(piece) for i, piece in self._pieces.items()}
        return self._after_another()

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The id of each token by the bytes of its text, where there is one such token.

        A byte's own token (`<0x61>`) is none where a piece has the same text: no tokenizer would use it.
        """
        lone = {i for i in self.texts if _BYTE_PIECE.fullmatch(self._pieces[i])}
        pieces = {i: text for i, text in self.texts.items() if i not in lone}
        return {self.texts[i]: i for i in lone} | dict.fromkeys(pieces.values(), -1) | _unique(pieces)

    def _after_another(self) -> dict[int, bytes]:
        """The text of each token behind another one, for tokenizers that join their tokens by rules of their own."""
        first = next((i for i, piece in sorted(self._pieces.items()) if piece.isalnum()), 0)
        before = self.text([first])
        found = {}
        for i in self._pieces:
            both = self.text([first, i])
            if both.startswith(before) and "�" not in both:
                found[i] = both[len(before) :].encode()
        return found

    @cached_property
    def _pieces(self) -> dict[int, str]:
        return {i: piece for piece, i in self.tokenizer.get_vocab().items() if i < self.size}

    @cached_property
    def _ids_of_pieces(self) -> dict[str, int]:
        return {piece: i for i, piece in self._pieces.items()}

    @cached_property
    def _ids_alone(self) -> dict[str, int]:
        return {name: i for name, i in _unique({i: self.text([i]) for i in self._pieces}).items() if "�" not in name}

    def _by_id(self, token: Token) -> int | None:
        """By the id that the server names. Where it gives a text as well, that must be the token's."""
        if token.name.startswith(TOKEN_ID):
            digits = token.name.removeprefix(TOKEN_ID)
            number = int(digits) if digits.isdecimal() and len(digits) < 10 else self.size
            return number if number < self.size else None
        if token.id is None or not 0 <= token.id < self.size:
            return None
        own = self.texts.get(token.id, b"")
        named = token.data or token.name.encode("utf-8", "replace")
        fits = named in (b"", own, own.strip()) or "�" in token.name or token.name == self._pieces.get(token.id)
        return token.id if fits else None

    def _by_text(self, token: Token) -> int | None:
        if token.data is None and "�" in token.name:  # a part of a character
            return None
        found = self.ids.get(token.data or token.name.encode("utf-8", "replace"), -1)
        return found if found >= 0 else None

    def _by_piece(self, token: Token) -> int | None:
        return self._ids_of_pieces.get(token.name)

    def _alone(self, token: Token) -> int | None:
        return self._ids_alone.get(token.name)


def _read(steps: Sequence[Step], name: Callable[[Token], int | None]) -> Told:
    ids, tops, unknown = [], [], 0
    for step in steps:
        known = name(step.token)
        named = {i: token.logprob for token in step.top if (i := name(token)) is not None and token.logprob is not None}
        ids.append(known)
        tops.append(named)
        unknown += (known is None) + len(step.top) - len(named)
    return Told(ids, tops, unknown)


def useless(steps: Sequence[Step]) -> str | None:
    """Why an answer's log probabilities tell nothing, in words; None: they may tell something."""
    if not any(step.top for step in steps):
        return "the server names no likely tokens beside those that were written"
    others = [
        [token.logprob for token in step.top if token.logprob is not None and not _same(token, step.token)]
        for step in steps
    ]
    if not any(others):
        return "the server names only the tokens that were written"
    told = [p for row in others for p in row if p >= MIN_LOGPROB]
    if not told:
        return "the server gives all tokens but those that were written no probability"
    everything = {token.logprob for step in steps for token in step.top}
    if len(everything) == 1 and len(told) > 1:
        return f"the server gives every token the same log probability, {told[0]:g}"
    return None


def _same(one: Token, other: Token) -> bool:
    return one.name == other.name if one.name or other.name else one.id == other.id


def _unique(names: dict[int, Name]) -> dict[Name, int]:
    """Names that one token has, and that token."""
    ids: dict[Name, int] = {}
    for i, name in names.items():
        ids[name] = -1 if name in ids else i
    return {name: i for name, i in ids.items() if i >= 0}


def _sentence_piece(piece: str) -> bytes:
    """The bytes of a SentencePiece piece."""
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
