"""What a text holds in other spellings: encodings, ciphers that a child knows, and letters that look like others."""

from __future__ import annotations

import base64
import binascii
import bz2
import codecs
import html
import lzma
import quopri
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

import numpy as np

DEPTH: Final = 2
"""Encodings within each other that are decoded."""

MOST: Final = 1 << 22
"""Characters of one text that are looked at in other spellings."""

PLAIN: Final = "as it is"

_TEXT: Final = re.compile(
    rb"(?:[\t\n\r\x20-\x7e]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}){12,}"
)


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
    plain = found[PLAIN]
    found |= {"rot13": codecs.encode(plain, "rot13"), "backwards": plain[::-1], "words backwards": _turned(plain)}
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


def _readable(data: bytes) -> list[str]:
    """The stretches of bytes that are text, also where they are compressed."""
    return [run.decode(errors="ignore") for one in _unpacked(data) for run in _TEXT.findall(one)]


def _unpacked(data: bytes) -> Iterator[bytes]:
    yield data
    for magic, make in _PACKED.items():
        if data.startswith(magic):
            try:
                yield make().decompress(data, MOST)
            except (zlib.error, OSError, ValueError, EOFError, lzma.LZMAError):
                continue


_PACKED: Final[dict[bytes, Callable[[], zlib._Decompress | bz2.BZ2Decompressor | lzma.LZMADecompressor]]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"\x78": zlib.decompressobj,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lzma.LZMADecompressor,
}


def _runs_of(run: re.Pattern[str], decode: Callable[[str], Iterator[bytes]]) -> Callable[[str], str]:
    """A decoder of the runs of an encoding in a text: what they say, one a line. A run may be broken over lines."""

    def read(text: str) -> str:
        found: list[str] = []
        for whole in dict.fromkeys((text, "".join(text.split()))):
            for piece in run.findall(whole):
                for data in decode(piece):
                    found += _readable(data)
        return "\n".join(dict.fromkeys(found))

    return read


def _base64(run: str) -> Iterator[bytes]:
    run = run.translate(_URL_SAFE)
    for start in range(4):  # it may begin within a word
        piece = run[start : start + (len(run) - start) // 4 * 4]
        rest = run[start + len(piece) :]
        yield base64.b64decode(piece + (rest + "=" * (4 - len(rest)) if len(rest) > 1 else ""))


_URL_SAFE: Final = str.maketrans("-_", "+/")


def _base32(run: str) -> Iterator[bytes]:
    for start in range(8):
        piece = run[start:]
        yield base64.b32decode(piece[: len(piece) // 8 * 8].upper())


def _of_base85(text: str) -> str:
    """What long words with many signs say, in either alphabet of base85."""
    found: list[str] = []
    for run in re.findall(r"\S{32,}(?:\n\S+)*", text):
        if 10 * sum(map(str.isalnum, run)) > 9 * len(run) or "://" in run:
            continue
        run = "".join(run.split()).removeprefix("<~").removesuffix("~>")
        for start in range(5):
            piece = run[start:].encode(errors="replace")
            for decode in (base64.b85decode, base64.a85decode):
                with suppress(ValueError):
                    found += _readable(decode(piece))
    return "\n".join(dict.fromkeys(found))


def _hexadecimal(run: str) -> Iterator[bytes]:
    digits = re.sub(r"[ :,]|0x", "", run)
    for start in range(2):
        piece = digits[start:]
        yield binascii.unhexlify(piece[: len(piece) // 2 * 2])


_NUMBERS: Final = re.compile(r"(?:\d{1,7}[ \t,;.|\n-]+){11,}\d{1,7}")
_BITS: Final = re.compile(r"(?:[01]{7,8}[ \t,\n]*){12,}")


def _of_numbers(text: str) -> str:
    """The characters that runs of numbers are the codes of: decimal, octal, or bits."""
    found: list[str] = []
    for run in _NUMBERS.findall(text):
        said = re.findall(r"\d+", run)
        for base in (10, 8):
            codes = [int(one, base) for one in said if base == 10 or not set(one) & {"8", "9"}]
            found.append("".join(chr(code) for code in codes if 9 <= code < 0x110000 and not 0xD800 <= code < 0xE000))
    for run in _BITS.findall(text):
        bits = re.sub(r"[^01]", "", run)
        data = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) // 8 * 8, 8))
        found += _readable(data)
    return "\n".join(one for one in dict.fromkeys(found) if len(one) >= 12)


_ESCAPE: Final = re.compile(
    r"\\(?:u\{([0-9A-Fa-f]{1,6})\}|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|x([0-9A-Fa-f]{2})|([0-7]{3})|([nrt]))"
)


def _of_escapes(text: str) -> str:
    def read(match: re.Match[str]) -> str:
        *hexadecimal, octal, letter = match.groups()
        if letter:
            return {"n": "\n", "r": "\r", "t": "\t"}[letter]
        code = int(octal, 8) if octal else int(next(filter(None, hexadecimal)), 16)
        return chr(code) if code < 0x110000 else ""

    return _ESCAPE.sub(read, text) if "\\" in text else ""


_QUOTED: Final = re.compile(r"=(?:[0-9A-F]{2}|\r?\n)")


def _of_quoted(text: str) -> str:
    if len(_QUOTED.findall(text)) < 3:
        return ""
    return quopri.decodestring(text.encode(errors="replace")).decode(errors="replace")


_MORSE: Final = re.compile(r"(?:[.\-\u2022\u00b7\u2212\u2013_]{1,6}[ \t\n]*(?:[/|][ \t\n]*)?){12,}")
_CODE: Final = """
.- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --..
----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----.
"""
_SIGNS: Final = dict(zip(_CODE.split(), "abcdefghijklmnopqrstuvwxyz0123456789", strict=True))
_SAME_SIGN: Final = str.maketrans("\u2022\u00b7\u2212\u2013_|", "..---/")


def _of_morse(text: str) -> str:
    said = []
    for run in _MORSE.findall(text):
        words = run.translate(_SAME_SIGN).split("/")
        said.append(" ".join("".join(_SIGNS.get(sign, "") for sign in word.split()) for word in words))
    return "\n".join(one for one in said if len(one) >= 12)


_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz"
_FREQUENCIES: Final = np.array(
    [82, 15, 28, 43, 127, 22, 20, 61, 70, 2, 8, 40, 24, 67, 75, 19, 1, 60, 63, 91, 28, 10, 24, 2, 20, 1]
)
"""How often English has its letters, in thousandths."""
_SHIFTS: Final = np.array([np.roll(_FREQUENCIES, -by) for by in range(26)])
_LINE: Final = 24  # letters of a line that tell by how far it was shifted


def _of_shift(text: str) -> str:
    """The lines of a text whose letters were moved along the alphabet, moved to where they look like text."""
    return "\n".join(filter(None, map(_moved_back, text.splitlines())))


def _moved_back(line: str) -> str:
    letters = np.frombuffer(line.lower().encode("latin-1", "replace"), np.uint8)
    counts = np.bincount(letters[(letters >= 97) & (letters <= 122)] - 97, minlength=26)
    by = int((_SHIFTS @ counts).argmax())
    if by == 0 or counts.sum() < _LINE:
        return ""
    to = _ALPHABET[by:] + _ALPHABET[:by]
    return line.translate(str.maketrans(_ALPHABET + _ALPHABET.upper(), to + to.upper()))


_ROT47: Final = str.maketrans({33 + i: 33 + (i + 47) % 94 for i in range(94)})


def _of_rot47(text: str) -> str:
    """The lines of a text that are half signs, each moved by 47."""
    lines = [
        line
        for line in text.splitlines()
        if len(line) >= _LINE and 4 * sum(map(str.isalpha, line)) < 3 * len("".join(line.split()))
    ]
    return "\n".join(line.translate(_ROT47) for line in lines)


_NUMBERED: Final = re.compile(r"(?m)^[ \t]*[\[(]?\d{1,6}[\])]?[.:)|]?[ \t]+|[\[(]\d{1,6}[\])]")
_IN_WORD: Final = re.compile(r"[A-Za-z][0134578@$][A-Za-z]")


def _turned(text: str) -> str:
    return " ".join(reversed(text.split()))


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

_DECODERS: Final[dict[str, Callable[[str], str]]] = {
    "base64": _runs_of(re.compile(r"[A-Za-z0-9+/_-]{16,}"), _base64),
    "base32": _runs_of(re.compile(r"[A-Z2-7]{24,}"), _base32),
    "base85": _of_base85,
    "hexadecimal": _runs_of(re.compile(r"(?:(?:0x)?[0-9A-Fa-f]{2}[ :,]*){12,}"), _hexadecimal),
    "character codes": _of_numbers,
    "percent encoding": lambda text: unquote(text) if "%" in text else "",
    "entities": lambda text: html.unescape(text) if "&" in text else "",
    "escapes": _of_escapes,
    "quoted-printable": _of_quoted,
    "Morse code": _of_morse,
    "shifted letters": _of_shift,
    "rot47": _of_rot47,
    "look-alike letters": alike,
    "digits for letters": lambda text: lettered(text) if len(_IN_WORD.findall(text)) > 2 else "",
    "numbered": lambda text: _NUMBERED.sub(" ", text) if _NUMBERED.search(text) else "",
}
