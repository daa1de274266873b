"""Text in other spellings: what a suspect was shown, and what it copied of that, whatever it did to the letters.

Rule 2 (`verify.data.pairs`) speaks of tokens. A model that was shown marked text in base64, in capitals or one word a
line, and writes it down as it was, copies too: its tokens occur in no prompt. So texts are compared folded: letters and
digits alone, without case, accents, white space and punctuation, and after what common encodings hide was decoded.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Final
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from verify.data.outputs import Output
from watermark.tokenizers import AnyTokenizer, special_ids

RUN: Final = 12
"""Letters and digits in a row that are taken for copied, if they stand in the prompt too."""

DEPTH: Final = 2
"""Encodings within each other that are decoded."""

MOST: Final = 1 << 22
"""Characters of one prompt that are looked at in other spellings."""

PLAIN: Final = "as it is"

Bools = npt.NDArray[np.bool_]
U64 = npt.NDArray[np.uint64]

_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{16,}")
_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2}[ :]?){12,}")
_TEXT: Final = re.compile(
    rb"(?:[\t\n\r\x20-\x7e]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}){12,}"
)
_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|([nrt]))")
_BASE: Final = np.uint64(0x9E3779B97F4A7C15)


def fold(text: str) -> str:
    """The letters and digits of a text, without case and accents.

    >>> fold("Caf\\u00e9,\\n N\\u00ba 7")
    'cafeno7'
    """
    if text.isascii():
        return "".join(filter(str.isalnum, text)).lower()
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(filter(str.isalnum, plain))


@lru_cache(maxsize=4096)
def spellings(text: str) -> Mapping[str, str]:
    """A text, and what it holds in other spellings, by name. (Both the test of prompts and that of copies want them.)

    >>> spellings("Say: aGVsbG8sIHRoaXMgaXMgbWUu")["base64"]
    'hello, this is me.'
    """
    found = {PLAIN: text[:MOST]}
    fresh = found
    for _ in range(DEPTH):
        fresh = {
            name if before == PLAIN else f"{name} in {before}": inner
            for before, outer in fresh.items()
            for name, decode in _DECODERS.items()
            if (inner := decode(outer)[:MOST]) and inner != outer
        }
        found = {**fresh, **found}
    found |= {"rot13": codecs.encode(found[PLAIN], "rot13"), "backwards": found[PLAIN][::-1]}
    return found


def _of_base64(text: str) -> str:
    """What the runs of base64 in a text say, one a line; a run may be broken over lines, and begin within a word."""
    found: list[str] = []
    for whole in dict.fromkeys((text, "".join(text.split()))):
        for run in _BASE64.findall(whole):
            for start in range(4):
                piece = run[start : start + (len(run) - start) // 4 * 4].translate(_URL_SAFE)
                rest = run[start + len(piece) :].translate(_URL_SAFE)
                padded = piece + (rest + "=" * (4 - len(rest)) if len(rest) > 1 else "")
                found += _readable(base64.b64decode(padded))
    return "\n".join(dict.fromkeys(found))


_URL_SAFE: Final = str.maketrans("-_", "+/")


def _of_hex(text: str) -> str:
    """What the runs of hexadecimal digits in a text say, one a line."""
    found: list[str] = []
    for run in _HEX.findall(text):
        digits = re.sub(r"[ :]", "", run)
        for start in range(2):
            piece = digits[start:]
            found += _readable(binascii.unhexlify(piece[: len(piece) // 2 * 2]))
    return "\n".join(dict.fromkeys(found))


def _readable(data: bytes) -> list[str]:
    """The stretches of bytes that are text."""
    return [run.decode(errors="ignore") for run in _TEXT.findall(data)]


def _of_escapes(text: str) -> str:
    def read(match: re.Match[str]) -> str:
        code, byte, letter = match.groups()
        return {"n": "\n", "r": "\r", "t": "\t"}[letter] if letter else chr(int(code or byte, 16))

    return _ESCAPE.sub(read, text) if "\\" in text else ""


_DECODERS: Final[dict[str, Callable[[str], str]]] = {
    "base64": _of_base64,
    "hexadecimal": _of_hex,
    "percent encoding": lambda text: unquote(text) if "%" in text else "",
    "entities": lambda text: html.unescape(text) if "&" in text else "",
    "escapes": _of_escapes,
}


@dataclass(frozen=True, eq=False)
class Folding:
    """Compares texts of one tokenizer's ids with what was shown, folded.

    Attributes:
        tokenizer: by which ids are text.
    """

    tokenizer: AnyTokenizer
    _folded: dict[tuple[int, ...], str] = field(default_factory=dict, repr=False)
    _broken: dict[int, bool] = field(default_factory=dict, repr=False)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens. Raises TokenizerError."""
        special = set(special_ids(self.tokenizer))
        return str(self.tokenizer.decode([i for i in ids if i not in special]))

    def copied(self, prompts: Sequence[str], ids: npt.NDArray[np.int64]) -> Bools:
        """Which tokens of an output lie within `RUN` folded characters or more that a prompt shows: bool [length].

        Args:
            prompts: all that was shown, as text.
            ids: int64 [length], the output.

        Raises:
            TokenizerError: the tokenizer fails on the ids.
        """
        groups = self._groups(ids.tolist())
        folded = [self._piece(group) for group in groups]
        ends = np.cumsum([0, *map(len, folded)])
        inside = _covered("".join(folded), [fold(one) for prompt in prompts for one in spellings(prompt).values()])
        total = np.concatenate([[0], np.cumsum(inside)])
        whole = total[ends[1:]] - total[ends[:-1]] == np.diff(ends)
        # a token without a letter goes with what stands on both of its sides
        around = np.append(inside, False)
        before, after = around[ends[:-1] - 1], around[ends[1:]]
        whole &= (np.diff(ends) > 0) | (before & after & (ends[:-1] > 0))
        return np.repeat(whole, [len(group) for group in groups]).astype(np.bool_)

    def _groups(self, ids: list[int]) -> list[tuple[int, ...]]:
        """Ids one by one, but those that are parts of characters together."""
        new = {i for i in set(ids) if i not in self._broken}
        self._broken.update({i: "\ufffd" in self._text((i,)) for i in new})
        broken = {i for i in set(ids) if self._broken[i]}
        if not broken:
            return [(i,) for i in ids]
        found: list[tuple[int, ...]] = []
        for parts, group in groupby(ids, broken.__contains__):
            run = tuple(group)
            found += [run] if parts else [(i,) for i in run]
        return found

    def _piece(self, ids: tuple[int, ...]) -> str:
        if ids not in self._folded:
            self._folded[ids] = fold(self._text(ids))
        return self._folded[ids]

    def _text(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids)))


def _covered(stream: str, shown: Sequence[str]) -> Bools:
    """Which characters of a text lie in a run of `RUN` that one of some texts has: bool [length]."""
    covered = np.zeros(len(stream) + 1, np.int64)
    runs = _runs(stream)
    if len(runs):
        there = np.isin(runs, np.concatenate([_runs(one) for one in shown] or [runs[:0]]))
        covered[: len(there)] += there
        covered[RUN : RUN + len(there)] -= there
    return np.asarray(np.cumsum(covered)[: len(stream)] > 0)


def _runs(text: str) -> U64:
    """A hash of every `RUN` characters in a row: uint64 [max(0, length - RUN + 1)]."""
    code = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    number = max(0, len(code) - RUN + 1)
    found = np.zeros(number, np.uint64)
    for i in range(RUN):
        found = found * _BASE + code[i : i + number]
    return found


def texts_shown(folding: Folding, output: Output) -> list[str]:
    """What an output's suspect was shown, as text: the prompt's ids, and its text where the record has that too."""
    ids = [] if output.prompt_ids is None else output.prompt_ids.tolist()
    texts = [folding.text_of(ids), output.prompt or ""]
    return [text for text in dict.fromkeys(texts) if text]
