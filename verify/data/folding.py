"""Text in other spellings: what a suspect was shown, and what it copied of that, whatever it did to the letters.

Rule 2 (`verify.data.pairs`) speaks of tokens. A model that was shown marked text in base64, in capitals or one word a
line, and writes it down as it was, copies too: its tokens occur in no prompt. So texts are compared folded: letters and
digits alone, without case, accents, white space and punctuation, and after what common encodings hide was decoded.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
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

IN_ORDER: Final = 24
"""Letters of words in a row that are taken for copied, if the prompt has these words in this order with others between
them: labels, tags, the names of columns. Of a long word `LONG` letters count."""
LONG: Final = 8
BETWEEN: Final = 12
"""Words that may stand between two of them."""
MOST_WORDS: Final = 1 << 18
"""Words of a prompt that are looked at so."""

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
class Shown:
    """What a suspect was shown, made ready to hold answers against it.

    Attributes:
        runs: for each way to fold, a hash of every `RUN` characters in a row, sorted, without those that come again.
        words: of each word the places where it stands, ascending; between two texts there is a gap.
        numbers: of each word, from 1.
        near: of two words that stand in this order, with at most `BETWEEN` others between them, both numbers in one,
            the first shifted by 32 bits; sorted.
    """

    runs: dict[Callable[[str], str], U64]
    words: dict[str, npt.NDArray[np.int64]]
    numbers: dict[str, int]
    near: U64


def shown_of(prompts: Iterable[str]) -> Shown:
    """What some prompts show, as they are and in other spellings."""
    texts = list(dict.fromkeys(one for prompt in prompts for one in (prompt, *spellings(prompt).values())))
    ways = (fold, fold_letters, fold_digits) if any(map(_has_digits, texts)) else (fold,)
    runs: dict[Callable[[str], str], U64] = {}
    for how in ways:
        runs[how] = np.unique(np.concatenate([_NO_RUNS, *(_runs(how(one)) for one in texts)])).astype(np.uint64)
    numbers: dict[str, int] = {}
    row: list[int] = []
    for one in texts:
        row += [numbers.setdefault(word, len(numbers) + 1) for word in words_of(one)[:MOST_WORDS]]
        row += [0] * (BETWEEN + 2)  # no word: nothing is near that stands in another text
    stand = np.array(row, np.uint64)
    by_word = np.argsort(stand, kind="stable")
    starts = np.searchsorted(stand[by_word], np.arange(1, len(numbers) + 2, dtype=np.uint64))
    places = {word: by_word[starts[i - 1] : starts[i]] for word, i in numbers.items()}
    return Shown(runs, places, numbers, _near(stand))


def _near(stand: U64) -> U64:
    """Which two numbers, 0 aside, stand in this order with at most `BETWEEN` between: sorted, as in `Shown`."""
    found = []
    for apart in range(1, BETWEEN + 2):
        first, second = stand[:-apart], stand[apart:]
        found.append((first << np.uint64(32) | second)[(first > 0) & (second > 0)])
    return np.sort(np.concatenate(found))


def words_of(text: str) -> list[str]:
    """The words of a text: its runs of letters, folded.

    >>> words_of('<w n="3">H\u00e9llo</w>')
    ['w', 'n', 'hello', 'w']
    """
    return [word for run in _WORD.findall(text) if (word := fold_letters(run))]


_WORD: Final = re.compile(r"[^\W\d_]+")


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

    def copied(self, prompts: Sequence[str] | Shown, ids: npt.NDArray[np.int64]) -> Bools:
        """Which tokens of an output are copied of what a prompt shows: bool [length].

        They lie within `RUN` folded characters or more that it has in a row, or in words that it has in this order.

        Args:
            prompts: all that was shown, as text or made ready.
            ids: int64 [length], the output.

        Raises:
            TokenizerError: the tokenizer fails on the ids.
        """
        groups = self._groups(ids.tolist())
        shown = prompts if isinstance(prompts, Shown) else shown_of(prompts)
        found = np.zeros(len(groups), np.bool_)
        for folded, runs in shown.runs.items():
            pieces = [self._piece(group, folded) for group in groups]
            found |= _whole(pieces, _covered("".join(pieces), runs))
        pieces = [self._piece(group, fold_letters) for group in groups]
        words = words_of(self.text_of(ids.tolist()))
        if "".join(words) == "".join(pieces):
            found |= _whole(pieces, np.repeat(_in_order(words, shown), [len(word) for word in words]))
        return np.repeat(found, [len(group) for group in groups]).astype(np.bool_)

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


def _whole(pieces: Sequence[str], inside: Bools) -> Bools:
    """Which pieces of a text lie within its copied characters: bool [pieces]; inside: bool [characters]."""
    ends = np.cumsum([0, *map(len, pieces)])
    total = np.concatenate([[0], np.cumsum(inside)])
    whole = total[ends[1:]] - total[ends[:-1]] == np.diff(ends)
    # a token without a letter goes with what stands on both of its sides
    around = np.append(inside, False)
    before, after = around[ends[:-1] - 1], around[ends[1:]]
    whole &= (np.diff(ends) > 0) | (before & after & (ends[:-1] > 0))
    return np.asarray(whole)


def _has_digits(text: str) -> bool:
    return any(map(str.isdigit, text))


def _covered(stream: str, shown: U64) -> Bools:
    """Which characters of a text lie in a run of `RUN` whose hash was shown: bool [length]."""
    covered = np.zeros(len(stream) + 1, np.int64)
    runs = _runs(stream)
    if len(runs):
        there = _among(runs, shown)
        covered[: len(there)] += there
        covered[RUN : RUN + len(there)] -= there
    return np.asarray(np.cumsum(covered)[: len(stream)] > 0)


def _in_order(words: Sequence[str], shown: Shown) -> Bools:
    """Which words of a text belong to some in a row that were shown in this order, however labelled: bool [words].

    Between two words that stand nowhere near each other no such row goes on. What is left between is looked at, if it
    has the letters.
    """
    found = np.zeros(len(words), np.bool_)
    size = np.array([min(len(word), LONG) for word in words], np.int64)
    numbers = np.array([shown.numbers.get(word, 0) for word in words], np.uint64)
    goes_on = _among(numbers[:-1] << np.uint64(32) | numbers[1:], shown.near)
    ends = np.append(np.flatnonzero(~goes_on) + 1, len(words))
    for start, end in zip(np.append(0, ends[:-1]).tolist(), ends.tolist(), strict=True):
        if size[start:end].sum() >= IN_ORDER:
            found[start:end] = _row_in_order([shown.words[word] for word in words[start:end]], size[start:end])
    return found


def _among(values: U64, known: U64) -> Bools:
    """Which values are among the known ones, which are sorted: bool [values]."""
    if not len(known):
        return np.zeros(len(values), np.bool_)
    return np.asarray(known[np.searchsorted(known, values).clip(max=len(known) - 1)] == values)


def _row_in_order(where: Sequence[npt.NDArray[np.int64]], size: npt.NDArray[np.int64]) -> list[bool]:
    """The same for words in a row; where: of each the places, ascending; size: its letters, int64 [words]."""
    ahead = _letters_so_far(where, size)
    back = _letters_so_far([-one[::-1] for one in where[::-1]], size[::-1])
    return [
        int((before + after[::-1]).max()) - letters >= IN_ORDER
        for before, after, letters in zip(ahead, back[::-1], size.tolist(), strict=True)
    ]


def _letters_so_far(where: Sequence[npt.NDArray[np.int64]], size: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """For each word of a text, at each place where it was shown, the letters of the words in a row that end there.

    where: of each word the places, ascending. size: the letters of each word, int64 [words].
    """
    found: list[npt.NDArray[np.int64]] = []
    before, letters = _NOWHERE, _NOWHERE
    for here, own in zip(where, size.tolist(), strict=True):
        best = np.zeros(len(here), np.int64)
        for back in range(1, BETWEEN + 2) if len(before) else ():
            at = np.searchsorted(before, here - back).clip(max=len(before) - 1)
            best = np.maximum(best, np.where(before[at] == here - back, letters[at], 0))
        before, letters = here, best + own
        found.append(letters)
    return found


_NO_RUNS: Final = np.zeros(0, np.uint64)
_NOWHERE: Final = np.zeros(0, np.int64)


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
