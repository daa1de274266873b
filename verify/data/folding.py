"""Text in other spellings: what a suspect was shown, and what it copied of that, whatever it did to the letters.

Rule 2 (`verify.data.pairs`) speaks of tokens. A model that was shown marked text in base64, in capitals or one word a
line, and writes it down as it was, copies too: its tokens occur in no prompt. So texts are compared folded: letters and
digits alone, without case, accents, white space and punctuation, and after what common encodings hide was decoded.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

import numpy as np
import numpy.typing as npt

from verify.data.outputs import Output
from verify.data.spellings import alike, lettered, spellings
from watermark.tokenizers import AnyTokenizer, special_ids

RUN: Final = 12
"""Letters and digits in a row that are taken for copied, if they stand in the prompt too."""

Bools = npt.NDArray[np.bool_]
U64 = npt.NDArray[np.uint64]

_BASE: Final = np.uint64(0x9E3779B97F4A7C15)


def fold(text: str) -> str:
    """The letters and digits of a text, without case, accents and look-alikes.

    >>> fold("Caf\\u00e9,\\n N\\u00ba 7")
    'cafeno7'
    """
    if text.isascii():
        return "".join(filter(str.isalnum, text)).lower()
    plain = unicodedata.normalize("NFKD", alike(unicodedata.normalize("NFKD", text).casefold()))
    return "".join(filter(str.isalnum, plain))


def fold_letters(text: str) -> str:
    """The same without digits.

    >>> fold_letters("1. The 2. cat")
    'thecat'
    """
    return "".join(filter(str.isalpha, fold(text)))


def fold_digits(text: str) -> str:
    """The same with letters for the digits that stand for them, where i and l are one.

    >>> fold_digits("H3llo w0r1d") == fold_digits("hello world")
    True
    """
    return fold(lettered(text)).replace("l", "i")


@dataclass(frozen=True, eq=False)
class Folding:
    """Compares texts of one tokenizer's ids with what was shown, folded.

    Attributes:
        tokenizer: by which ids are text.
    """

    tokenizer: AnyTokenizer
    _folded: dict[tuple[tuple[int, ...], Callable[[str], str]], str] = field(default_factory=dict, repr=False)
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
        shown = list(dict.fromkeys(one for prompt in prompts for one in (prompt, *spellings(prompt).values())))
        found = np.zeros(len(groups), np.bool_)
        for folded in (fold, fold_letters, fold_digits):
            if folded is fold or any(map(_has_digits, shown)):
                found |= self._whole(groups, shown, folded)
        return np.repeat(found, [len(group) for group in groups]).astype(np.bool_)

    def _whole(self, groups: Sequence[tuple[int, ...]], shown: Sequence[str], how: Callable[[str], str]) -> Bools:
        """Which groups of tokens lie within a copied run, for one way to fold: bool [groups]."""
        folded = [self._piece(group, how) for group in groups]
        ends = np.cumsum([0, *map(len, folded)])
        inside = _covered("".join(folded), [how(one) for one in shown])
        total = np.concatenate([[0], np.cumsum(inside)])
        whole = total[ends[1:]] - total[ends[:-1]] == np.diff(ends)
        # a token without a letter goes with what stands on both of its sides
        around = np.append(inside, False)
        before, after = around[ends[:-1] - 1], around[ends[1:]]
        whole &= (np.diff(ends) > 0) | (before & after & (ends[:-1] > 0))
        return np.asarray(whole)

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

    def _piece(self, ids: tuple[int, ...], how: Callable[[str], str]) -> str:
        key = ids, how
        if key not in self._folded:
            self._folded[key] = how(self._text(ids))
        return self._folded[key]

    def _text(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids)))


def _has_digits(text: str) -> bool:
    return any(map(str.isdigit, text))


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
