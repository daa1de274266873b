"""What a text holds in other spellings: decoded, backwards, and with letters for signs that look like them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from verify.data.decoders import DECODERS, GUESSES, MOST

DEPTH: Final = 3
"""Encodings within each other that are decoded."""

PLAIN: Final = "as it is"


@lru_cache(maxsize=4096)
def spellings(text: str) -> Mapping[str, str]:
    """A text, and what it holds in other spellings, by name. (Both the test of prompts and that of copies want them.)

    >>> spellings("Say: aGVsbG8sIHRoaXMgaXMgbWUu")["base64"]
    'hello, this is me.'
    """
    found = {PLAIN: text[:MOST]}
    fresh = found
    for _ in range(DEPTH):
        exact = _decoded(fresh, DECODERS, found)
        found = {**exact, **_decoded(fresh, _GUESSES, found), **found}
        fresh = exact
    plain = found[PLAIN]
    words = plain.split()
    found |= {"backwards": plain[::-1], "words backwards": " ".join(reversed(words))}
    return found | {"each word backwards": " ".join(word[::-1] for word in words)}


def _decoded(
    texts: Mapping[str, str], decoders: Mapping[str, Callable[[str], str]], known: Mapping[str, str]
) -> dict[str, str]:
    """What texts say that is not known yet, by the name of the spelling."""
    found: dict[str, str] = {}
    for before, outer in texts.items():
        for name, decode in decoders.items():
            inner = decode(outer)[:MOST].encode("utf-8", "ignore").decode()  # no halves of surrogate pairs
            if inner and inner not in known.values():
                found[name if before == PLAIN else f"{name} in {before}"] = inner
    return found


def alike(text: str) -> str:
    """A text with Latin letters for those of other scripts that look like them.

    >>> alike("\\u0440\\u0430\\u0443"), alike("\\u1d00")
    ('pay', 'a')
    """
    return text if text.isascii() else text.translate(_ALIKE)


def lettered(text: str) -> str:
    """A text with letters for the digits that stand for them, as in "h3ll0".

    >>> lettered("h3ll0 w0r1d")
    'hello worid'
    """
    return text.translate(_LEET)


_IN_WORD: Final = re.compile(r"[A-Za-z][0134578@$][A-Za-z]")
_LEET: Final = str.maketrans("013457@$", "oieastas")
_SMALL: Final = {
    "aeopcyxijs": "0430 0435 043e 0440 0441 0443 0445 0456 0458 0455",
    "dqwhbkmht": "0501 051b 051d 04bb 0432 043a 043c 043d 0442",
    "aopuvikt": "03b1 03bf 03c1 03c5 03bd 03b9 03ba 03c4",
    "ga": "0261 0251",
    "abcdefghijkl": "1d00 0299 1d04 1d05 1d07 a730 0262 029c 026a 1d0a 1d0b 029f",
    "mnoprstuvwyz": "1d0d 0274 1d0f 1d18 0280 a731 1d1b 1d1c 1d20 1d21 028f 1d22",
}
"""Latin letters, and the code points of Cyrillic, Greek and small capitals that look like them."""
_LATIN: Final = {
    chr(int(code, 16)): letter
    for letters, codes in _SMALL.items()
    for letter, code in zip(letters, codes.split(), strict=True)
}
_ALIKE: Final = str.maketrans(
    {other.upper(): letter.upper() for other, letter in _LATIN.items() if len(other.upper()) == 1} | _LATIN
)

_GUESSES: Final[Mapping[str, Callable[[str], str]]] = {
    **GUESSES,
    "look-alike letters": alike,
    "digits for letters": lambda text: lettered(text) if len(_IN_WORD.findall(text)) > 2 else "",
}
