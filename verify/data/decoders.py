"""Decoders of common encodings and of ciphers that a child knows: from a text to what it says, empty if nothing."""

from __future__ import annotations

import base64
import binascii
import bz2
import html
import lzma
import quopri
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final
from urllib.parse import unquote

import numpy as np

MOST: Final = 1 << 22
"""Characters of one text that are looked at in other spellings."""

_TEXT: Final = re.compile(
    rb"(?:[\t\n\r\x20-\x7e]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}){12,}"
)


def _readable(data: bytes) -> list[str]:
    """The stretches of bytes that are text, also where they are compressed."""
    return [run.decode(errors="ignore") for one in _unpacked(data) for run in _TEXT.findall(one)]


def _unpacked(data: bytes) -> Iterator[bytes]:
    yield data
    if 3 * data.count(0) > len(data):
        yield data.replace(b"\0", b"")  # UTF-16 and UTF-32
    with suppress(zlib.error):
        yield zlib.decompressobj(wbits=-15).decompress(data, MOST)
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
    b"\xfd7zXZ": lambda: lzma.LZMADecompressor(memlimit=16 * MOST),
}


def _said(decoded: Iterable[bytes]) -> str:
    """What some bytes say, one stretch of text a line."""
    return "\n".join(dict.fromkeys(text for data in decoded for text in _readable(data)))


_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{16,}")
_ELSE: Final = re.compile(r"[^A-Za-z0-9+/_-]")


def _of_base64(text: str) -> Iterator[bytes]:
    """The runs of base64, which may be broken over lines, quoted, their signs apart, and backwards."""
    for whole in dict.fromkeys((text, _ELSE.sub("", text))):
        for run in _BASE64.findall(whole):
            yield from _base64(run)
            yield from _base64(run[::-1])


def _base64(run: str) -> Iterator[bytes]:
    run = run.translate(_URL_SAFE)
    for start in range(4):  # it may begin within a word
        piece = run[start : start + (len(run) - start) // 4 * 4]
        rest = run[start + len(piece) :]
        yield base64.b64decode(piece + (rest + "=" * (4 - len(rest)) if len(rest) > 1 else ""))


_URL_SAFE: Final = str.maketrans("-_", "+/")


def _base64_words(text: str) -> str:
    """What the words of a text say, each in base64 by itself."""
    words = [_base64_word(word) for word in text.split()]
    said = [word for word in words if word]
    return " ".join(said) if len(said) > 8 and 2 * len(said) > len(words) else ""


def _base64_word(word: str) -> str:
    try:
        said = base64.b64decode(word + "=" * (-len(word) % 4), validate=True).decode("ascii")
    except ValueError:
        return ""
    return said if said.isprintable() else ""


def _of_base32(text: str) -> Iterator[bytes]:
    """Long runs of base32, in either alphabet and case."""
    for run in re.findall(r"[A-Z2-7]{24,}|[a-z2-7]{24,}|[0-9A-V]{24,}|[0-9a-v]{24,}", text):
        for start in range(8):
            piece = run[start : start + (len(run) - start) // 8 * 8].upper()
            for decode in (base64.b32decode, base64.b32hexdecode):
                with suppress(ValueError):
                    yield decode(piece)


def _of_uuencode(text: str) -> Iterator[bytes]:
    """The lines of uuencode, as one."""
    said = b""
    for line in re.findall(r"(?m)^[!-M][ -`]{3,84}$", text):
        with suppress(binascii.Error):
            said += binascii.a2b_uu(line)
    yield said


_UTF7: Final = re.compile(r"\+[A-Za-z0-9+/]{2,}-?")


def _of_utf7(text: str) -> str:
    return text.encode("ascii", "ignore").decode("utf-7", "ignore") if len(_UTF7.findall(text)) > 2 else ""


def _of_base85(text: str) -> Iterator[bytes]:
    """Long words with many signs, in either alphabet of base85."""
    for run in re.findall(r"\S{32,}(?:\n\S+)*", text):
        if 10 * sum(map(str.isalnum, run)) > 9 * len(run) or "://" in run:
            continue
        run = "".join(run.split()).removeprefix("<~").removesuffix("~>")
        for start in range(5):
            piece = run[start:].encode(errors="replace")
            for decode in (base64.b85decode, base64.a85decode):
                with suppress(ValueError):
                    yield decode(piece)


_HEX: Final = re.compile(r"(?:(?:0x|\\x)?[0-9A-Fa-f]{2}[^0-9A-Za-z]{0,4}){12,}")


def _of_hex(text: str) -> Iterator[bytes]:
    """Runs of hexadecimal digits, whatever stands between the bytes; a run may be backwards."""
    for run in _HEX.findall(text):
        digits = re.sub(r"0x|[^0-9A-Fa-f]", "", run)
        for one in (digits, digits[1:], digits[::-1], digits[-2::-1]):
            yield binascii.unhexlify(one[: len(one) // 2 * 2])


_NUMBERS: Final = re.compile(r"(?:\d{1,7}[ \t,;.|\n-]+){11,}\d{1,7}")
_BITS: Final = re.compile(r"(?:[01]{7,8}[ \t,\n]*){12,}")


def _of_numbers(text: str) -> str:
    """The characters that runs of numbers are the codes of: decimal, octal, or bits."""
    found: list[str] = []
    for run in _NUMBERS.findall(text):
        said = re.findall(r"\d+", run)
        for base in (10, 8):
            codes = [int(one, base) for one in said if base == 10 or not set(one) & {"8", "9"}]
            if max(codes, default=0) <= 27:  # places in the alphabet
                found.append("".join(chr(96 + code) if 0 < code < 27 else " " for code in codes))
            found.append("".join(chr(code) for code in codes if 9 <= code < 0x110000 and not 0xD800 <= code < 0xE000))
    for run in _BITS.findall(text):
        bits = re.sub(r"[^01]", "", run)
        data = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) // 8 * 8, 8))
        found += _readable(data)
    return "\n".join(one for one in dict.fromkeys(found) if len(one) >= 12)


_ESCAPE: Final = re.compile(
    r"(?:\\|(?=U\+))"
    r"(?:U\+([0-9A-Fa-f]{4,6})[ ,;]?|u\{([0-9A-Fa-f]{1,6})\}|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})"
    r"|x([0-9A-Fa-f]{2})|([0-7]{3})|([nrt]))"
)


def _of_escapes(text: str) -> str:
    def read(match: re.Match[str]) -> str:
        *hexadecimal, octal, letter = match.groups()
        if letter:
            return {"n": "\n", "r": "\r", "t": "\t"}[letter]
        code = int(octal, 8) if octal else int(next(filter(None, hexadecimal)), 16)
        return chr(code) if code < 0x110000 else ""

    return _ESCAPE.sub(read, text) if "\\" in text or "U+" in text else ""


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
_SHIFTS: Final = np.array(
    [np.roll(_FREQUENCIES, -by) for by in range(26)] + [np.roll(_FREQUENCIES[::-1], -by) for by in range(26)]
)
_LINE: Final = 24  # letters of a line that tell by how far it was shifted


def _of_shift(text: str) -> str:
    """The lines of a text whose letters were moved along the alphabet, or mirrored, moved back to look like text."""
    return "\n".join(filter(None, map(_moved_back, text.splitlines())))


def _moved_back(line: str) -> str:
    letters = np.frombuffer(line.lower().encode("latin-1", "replace"), np.uint8)
    counts = np.bincount(letters[(letters >= 97) & (letters <= 122)] - 97, minlength=26)
    by = int((_SHIFTS @ counts).argmax())
    if by == 0 or counts.sum() < _LINE:
        return ""
    alphabet = _ALPHABET if by < 26 else _ALPHABET[::-1]
    to = alphabet[by % 26 :] + alphabet[: by % 26]
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


_APART: Final = " .-_,|*/\n"
_QUOTED_LETTER: Final = re.compile(r"""["'](.)["']""")


def _of_letters_apart(text: str) -> str:
    """A text whose letters have a sign between each two, or stand in quotes one by one."""
    for between in _APART:
        if 5 * text.count(between) > 2 * len(text):
            return re.sub(f"(.){re.escape(between)}", r"\1", text, flags=re.DOTALL)
    quoted = _QUOTED_LETTER.findall(text)
    return "".join(quoted) if len(quoted) >= 12 else ""


_DOUBLED: Final = re.compile(r"([^\W\d_])\1")

_ALFA: Final = re.compile(
    "(alpha|alfa|bravo|charlie|delta|echo|foxtrot|golf|hotel|india|juliett?|kilo|lima|mike|november|oscar|papa|quebec|romeo"
    "|sierra|tango|uniform|victor|whiske?y|x-?ray|yankee|zulu)",
    re.IGNORECASE,
)


def _of_spelling_alphabet(text: str) -> str:
    words = re.findall(r"[A-Za-z-]+|[/|\n]", text)
    said = "".join(word[0] if _ALFA.fullmatch(word) else " " for word in words)
    return said if 2 * sum(map(str.isalpha, said)) > len(words) > 12 else ""


_FLIPPED: Final = str.maketrans(
    "\u0250q\u0254p\u01dd\u025f\u0183\u0265\u1d09\u027e\u029e\u05df\u026f"
    "u\u0279s\u0287n\u028c\u028d\u028eb\u0131d\u0253\u0279",
    "abcdefghijklmnrstuvwyqipgr",
)
_FLIPS: Final = re.compile("[\u0250\u0254\u01dd\u025f\u0265\u1d09\u027e\u029e\u026f\u0279\u0287\u028c\u028d\u028e]")


def _of_flipped(text: str) -> str:
    """A text of letters that stand on their heads, read from either end."""
    turned = text.translate(_FLIPPED)
    return f"{turned[::-1]}\n{turned}" if len(_FLIPS.findall(text)) > 8 else ""


def _of_labelled(text: str) -> str:
    """The words of a text without those that come again and again: tags, labels, names of columns."""
    words = re.findall(r"[^\W\d_]+", text)
    often = {word for word, number in Counter(words).items() if number >= 8 and 12 * number > len(words)}
    rest = [word for word in words if word not in often]
    return " ".join(rest) if 4 * len(rest) < 3 * len(words) else ""


def _of_pig_latin(text: str) -> str:
    """What the words of pig Latin may stand for, all that a word may be one after another."""
    words = re.findall(r"[^\W\d_]+", text)
    stems = [word[:-2] for word in words if len(word) > 3 and word.lower().endswith("ay")]
    if len(stems) < 8 or 2 * len(stems) < len(words):
        return ""
    return " ".join(one for stem in stems for one in (stem, stem[:-1], *(stem[-k:] + stem[:-k] for k in (1, 2, 3))))


_BRAILLE: Final = "1 3 9 25 17 11 27 19 10 26 5 7 13 29 21 15 31 23 14 30 37 39 58 45 61 53"
"""The dots of each letter of the alphabet, as bits."""
_SIGN_LETTERS: Final = (
    {first + i: chr(97 + i) for first in (0x1F1E6, 0x1F130, 0x1F150, 0x1F170) for i in range(26)}
    | {0xE0000 + code: chr(code) for code in range(0x20, 0x7F)}
    | {0x2800 + int(dots): chr(97 + i) for i, dots in enumerate(_BRAILLE.split())}
)
"""Regional indicators, letters in squares and circles, tags, and Braille."""
_SIGN_BYTES: Final = (
    {0x2800 + i: i for i in range(256)},  # Braille
    {0xFE00 + i: i for i in range(16)} | {0xE0100 + i: 16 + i for i in range(240)},  # variation selectors
)
_UNSEEN: Final = "\u200b\u200c\u200d\u2060\ufeff\u180e"


def _of_signs(text: str) -> str:
    """What signs that stand for letters, bytes or bits say."""
    if text.isascii():
        return ""
    codes = [ord(letter) for letter in text]
    found = []
    if sum(code in _SIGN_LETTERS for code in codes) >= 12:
        found.append(text.translate(_SIGN_LETTERS))
    for table in _SIGN_BYTES:
        found += _readable(bytes(table[code] for code in codes if code in table))
    unseen = Counter(letter for letter in text if letter in _UNSEEN).most_common(2)
    if len(unseen) == 2:
        bits = "".join("01"[letter == unseen[0][0]] for letter in text if letter in (unseen[0][0], unseen[1][0]))
        for one in (bits, bits.translate(str.maketrans("01", "10"))):
            found += _readable(int(one + "0" * (-len(one) % 8), 2).to_bytes((len(one) + 7) // 8, "big"))
    return "\n".join(found)


DECODERS: Final[dict[str, Callable[[str], str]]] = {
    "base64": lambda text: _said(_of_base64(text)),
    "base64 word by word": _base64_words,
    "base32": lambda text: _said(_of_base32(text)),
    "base85": lambda text: _said(_of_base85(text)),
    "uuencode": lambda text: _said(_of_uuencode(text)),
    "UTF-7": _of_utf7,
    "hexadecimal": lambda text: _said(_of_hex(text)),
    "character codes": _of_numbers,
    "percent encoding": lambda text: unquote(text) if "%" in text else "",
    "entities": lambda text: html.unescape(text) if "&" in text else "",
    "escapes": _of_escapes,
    "quoted-printable": _of_quoted,
    "Morse code": _of_morse,
}
"""Encodings, of which there may be several within each other."""

GUESSES: Final[dict[str, Callable[[str], str]]] = {
    "shifted letters": _of_shift,
    "rot47": _of_rot47,
    "letters apart": _of_letters_apart,
    "doubled letters": lambda text: _DOUBLED.sub(r"\1", text) if 3 * len(_DOUBLED.findall(text)) > len(text) else "",
    "spelling alphabet": _of_spelling_alphabet,
    "signs for letters": _of_signs,
    "upside down": _of_flipped,
    "pig Latin": _of_pig_latin,
    "labelled words": _of_labelled,
    "numbered": lambda text: _NUMBERED.sub(" ", text) if _NUMBERED.search(text) else "",
}
"""Ciphers, seen by what the text looks like. What they say is not decoded further."""
