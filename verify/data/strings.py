"""Answers whose tokens are named by strings, in the tokens of a mark whose tokenizer is another.

A server names each token that the suspect wrote, and the likely ones in its place, by the bytes that they stand for.
Put together, the written ones are the answer's text, which the mark's tokenizer cuts in its own way. At each byte of it
where a token of either begins, the context is the mark's tokens before that place, and each likely string gives its
probability to its *first* mark token (`verify.data.retokenize`). The suspect's tokenizer is not needed.

Why no place need be cut out here. Whether both tokenizations have a boundary at a place depends on the text after it.
In text that a suspect is made to *read*, and that may carry the mark, the text after a place depends on the coins at
the place: so `verify.data.retokenize` cuts it, and what a server says along such text in tokens of its own cannot be
used. An answer that the suspect *wrote* is another matter. Under the null hypothesis all of it, with its likely
strings, is a function of the suspect and of what it was shown. What was shown depends on the coins of those contexts
alone that occur in it with a successor, and rule 2 leaves these contexts out. Given all that was shown, the coins of
every other context are independent and fair, and of the answer's places, contexts, tokens and weights each is then a
constant, wherever in the answer it was read off. The e-value of an answer given everything before it has mean 1, and so
has the product over the answers. (Were an answer's own coins to decide where it is cut, the suspect would know them.)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from verify.data.dialects import Step, Token
from verify.data.logprobs import MIN_LOGPROB, TextLogprobs
from verify.data.retokenize import first_tokens, summed
from verify.data.spelling import Spelling, byte_level, with_spaces

STRINGS: Final = "named by strings"
"""In place of the fingerprint of a suspect's tokenizer, where that is not known."""

MIN_SPELLED: Final = 0.9
"""Share of an answer's text that its tokens must spell, in order."""

_FARTHEST: Final = 16  # bytes that a token of unknown name may stand for

TOKEN_ID: Final = "token_id:"
"""How vLLM names a token if it is asked to return tokens as ids: by this, and its id."""

Names = list[bytes | None]


@dataclass(frozen=True)
class Restated:
    """An answer in the mark's tokens.

    Attributes:
        ids: the answer's text, tokenized.
        tops: for each of them [id, log probability] of the likely tokens, or None where none is known.
        ambiguous: places where both tokenizations have a boundary, and no likely string could be translated.
    """

    ids: list[int]
    tops: list[list[list[Any]] | None]
    ambiguous: int

    def fields(self) -> dict[str, Any]:
        """As fields of a record (`verify.data.logprobs.from_record`)."""
        how = {"tokenizer": STRINGS, "cut": False, "ambiguous": self.ambiguous}
        return {"output_ids": self.ids, "top_logprobs": self.tops, "translated": how}


@dataclass(frozen=True, eq=False)
class Restater:
    """From strings to a mark's tokens.

    Attributes:
        mark: the mark's tokenizer.
        limit: what token ids lie below.
    """

    mark: Spelling = field(repr=False)
    limit: int
    _first: dict[bytes, int] = field(default_factory=dict, repr=False)

    def restate(self, steps: Sequence[Step], text: str) -> Restated | None:
        """An answer in the mark's tokens; None if what it names are not the strings of its text.

        Args:
            steps: the tokens that were written, and the likely ones in the place of each.
            text: what they add up to. White space at either end, and special tokens, may be missing.

        Raises:
            TokenizerError: the mark's tokenizer fails on the text.
        """
        read = spelled(steps, text)
        if read is None:
            return None
        (written,) = self.mark.encode([text])
        kept = written.ids < self.limit
        ids, starts = written.ids[kept], written.starts[kept]
        place_at = {start: place for place, start in reversed(list(enumerate(starts.tolist()))) if start >= 0}
        likely: dict[int, list[tuple[bytes, float]]] = {}
        for step, start, strings in zip(steps, read.starts, read.likely, strict=True):
            if start in place_at:  # of tokens that add nothing, the one that follows them
                logprobs = [token.logprob for token in step.top]
                likely[place_at[start]] = [
                    (string, p) for string, p in zip(strings, logprobs, strict=True) if string and p is not None
                ]
        tops = self.translated(likely)
        return Restated(ids.tolist(), [tops.get(place) for place in range(len(ids))], len(likely) - len(tops))

    def translated(self, likely: dict[int, list[tuple[bytes, float]]]) -> dict[int, list[list[Any]]]:
        """Likely strings and their log probabilities, by place, as [id, log probability]; places without any left out.

        Raises:
            TokenizerError: the mark's tokenizer fails on a string.
        """
        fresh = list(dict.fromkeys(string for row in likely.values() for string, _ in row if string not in self._first))
        self._first.update(zip(fresh, first_tokens(self.mark, fresh).tolist(), strict=True))
        entries = [(place, self._first[string], p) for place in sorted(likely) for string, p in likely[place]]
        entries = [(at, i, p) for at, i, p in entries if 0 <= i < self.limit and p >= MIN_LOGPROB]
        place, token, logprob = (np.array(column) for column in zip(*entries, strict=True)) if entries else [_NONE] * 3
        found: dict[int, list[list[Any]]] = {}
        for at, i, p in zip(*(one.tolist() for one in summed(place, token, logprob.astype(np.float32))), strict=True):
            found.setdefault(at, []).append([i, round(p, 4)])
        return found


_NONE: Final = np.zeros(0, np.int64)


def as_named(compared: TextLogprobs, named: Collection[int], pieces: Sequence[bytes]) -> TextLogprobs:
    """What a reference with the mark's tokens says, made to say no more than a suspect that names strings can say.

    Each of its tokens gives its probability to the longest of the suspect's tokens with which its own bytes begin, if
    there is one: a suspect that spells " hello" as " he" and "llo" never names " hello".

    Args:
        compared: what the reference says along a text.
        named: the mark's tokens that the suspect has named, there or anywhere.
        pieces: the bytes of the mark's tokens.
    """
    strings = {pieces[i]: i for i in sorted(named) if i < len(pieces)}
    given, which = np.unique(compared.tokens.astype(np.int64), return_inverse=True)
    to = [_longest(pieces[i], strings, i) if i < len(pieces) else i for i in given.tolist()]
    place, tokens, logprobs = summed(compared.place, np.array(to, np.int64)[which], compared.logprobs)
    return replace(compared, place=place, tokens=tokens, logprobs=logprobs)


def _longest(piece: bytes, strings: dict[bytes, int], otherwise: int) -> int:
    """What stands for the longest string that a piece begins with."""
    return next((strings[piece[:n]] for n in range(len(piece), 0, -1) if piece[:n] in strings), otherwise)


@dataclass(frozen=True)
class Strings:
    """What the tokens of an answer stand for, and where they begin.

    Attributes:
        starts: for each step the byte of the text at which its token begins; -1 where that cannot be told.
        likely: the bytes of the likely tokens there; None for those that cannot be told.
    """

    starts: list[int]
    likely: list[Names]


def spelled(steps: Sequence[Step], text: str) -> Strings | None:
    """The strings of an answer's tokens, by whichever way of naming tokens spells its text; None: none does.

    Servers name a token by its bytes or its text (" the"), by its piece (`Ġthe`, `▁the`, `<0x0A>`), or by its text
    alone, which loses the space of tokenizers like Llama's: then only what could have been written in the place of a
    token with a space is told.
    """
    raw = text.encode("utf-8", "replace")
    for name in (by_text, _of_byte_level, _of_sentence_piece):
        starts, end, skipped = _aligned([name(step.token) for step in steps], raw)
        if end >= MIN_SPELLED * len(raw):
            likely = [[None if name(one) in skipped else name(one) for one in step.top] for step in steps]
            return Strings(starts, likely)
    names = [by_text(step.token) for step in steps]
    starts, end, skipped = _aligned(_with_lost_spaces(names, raw), raw)
    if end < MIN_SPELLED * len(raw):
        return None
    begun = [start >= 0 and raw[start : start + 1] == b" " for start in starts]
    likely = [
        [_spaced(by_text(one)) if spaced and by_text(one) not in skipped else None for one in step.top]
        for step, spaced in zip(steps, begun, strict=True)
    ]
    return Strings(starts, likely)


def by_text(token: Token) -> bytes | None:
    """What a token stands for, if it is named by its bytes or its text."""
    if token.data is not None:
        return token.data
    if "�" in token.name or token.name.startswith(TOKEN_ID):  # a part of a character; an id
        return None
    return token.name.encode("utf-8", "replace")


def _of_byte_level(token: Token) -> bytes | None:
    return byte_level(token.name)


def _of_sentence_piece(token: Token) -> bytes | None:
    return with_spaces(token.name, "▁")


def _spaced(name: bytes | None) -> bytes | None:
    """A name with the space that it has lost, if it is a word."""
    return b" " + name if name and name[:1].isalnum() else name


def _with_lost_spaces(names: Names, raw: bytes) -> Names:
    """Names with a space before them where the text has one."""
    at, found = 0, list(names)
    for i, name in enumerate(names):
        if not name or raw.startswith(name, at):
            at += len(name or b"")
        elif raw.startswith(b" " + name, at):
            found[i] = b" " + name
            at += len(name) + 1
    return found


def _aligned(names: Names, raw: bytes) -> tuple[list[int], int, set[bytes | None]]:
    """Where each of some strings begins in a text that they add up to (-1: it cannot be told), how much of the text
    they spell, and those that are not in it, special tokens, say.
    """
    at = lost = 0
    starts: list[int] = []
    skipped: set[bytes | None] = set()
    for name in names:
        starts.append(-1 if lost else at)
        if name is None:
            lost += 1
            continue
        if lost:  # go on where the next known one is
            found = raw.find(name, at + 1, at + 1 + _FARTHEST * lost + len(name)) if name else -1
            if found < 0:
                lost += 1
                continue
            starts[-1], at, lost = found, found + len(name), 0
        elif raw.startswith(name, at):
            at += len(name)
        elif at == 0 and name.strip() and raw.startswith(name.lstrip()):  # a space that the text has lost
            starts[-1], at = -1, len(name.lstrip())
        elif not _is_text(name):  # a part of a character that was never finished
            lost = 1
        else:
            starts[-1] = -1
            skipped |= {name} if name.strip() else set()
    return starts, at, skipped


def _is_text(string: bytes) -> bool:
    try:
        string.decode()
    except UnicodeDecodeError:
        return False
    return True
