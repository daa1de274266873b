"""JSON read strictly, and the types of its fields: one reader and one kind of table for marks, cards and records."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO, Final

from watermark.io.files import open_to_read
from watermark.io.opening import MOST


class JsonError(ValueError):
    """Text that is no JSON we take. The message says why, and quotes nothing of it. line: its number, if known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def load_json(source: bytes | Path) -> Any:
    """The JSON value in some bytes, or in a file: UTF-8, perhaps after a byte order mark.

    Refused, beside what is no JSON: an object with a field twice (other readers may take the other one), half a
    surrogate pair (valid JSON, but no text), nesting too deep for Python's stack, integers of thousands of digits.

    Raises:
        JsonError: the bytes are refused.
        OSError: the file cannot be read.

    >>> load_json(b'{"width": 1}')
    {'width': 1}
    >>> load_json(b'{"width": 1, "width": 2}')
    Traceback (most recent call last):
    watermark.io.fields.JsonError: no valid JSON: a field is there twice
    """
    if isinstance(source, bytes):
        data = source
    else:
        with open_to_read(source) as file:
            data = file.read(MOST + 1)
        if len(data) > MOST:
            raise JsonError(f"more than {MOST >> 20} MiB")
    with _refusals():
        text = data.decode("utf-8-sig")
        value = _DECODER.decode(text)
        _check_text(text, value)
    return value


def load_object(source: bytes | Path) -> dict[str, Any]:
    """As `load_json`, for an object; JsonError if it is another value."""
    value = load_json(source)
    if not isinstance(value, dict):
        raise JsonError("no JSON object")
    return value


def array_items(file: BinaryIO, most: int) -> Iterator[tuple[int, Any]]:
    """The elements of the JSON array that a file is, one by one, each with the number of the line where it begins.

    No more than two elements, and a block, are in memory at once.

    Args:
        file: opened at its beginning.
        most: how long an element may be.

    Raises:
        JsonError: as `load_json`, when it comes to the place, whose line it names; or an element is too long, or the
            text goes on after the array.
        OSError: the file cannot be read.
    """
    text = _Text(file, most)
    try:
        with _refusals():
            text.expect("[")
            if text.next() != "]":
                yield text.value()
                while text.next() == ",":
                    text.expect(",")
                    text.next()
                    yield text.value()
            text.expect("]")
            if text.next():
                raise JsonError("the text goes on after the array")
    except JsonError as error:
        raise JsonError(str(error), text.line) from None


class _Text:
    """A file as text, of which only the part is kept that is being read. line: of the next character."""

    BLOCK: Final = 1 << 16

    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file, self.most = file, most
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def _more(self) -> bool:
        """Reads as much again as is kept; False at the end of the file."""
        if self.ended:
            return False
        self.text, self.at = self.text[self.at :], 0
        block = self.file.read(max(self.BLOCK, len(self.text)))
        self.ended = not block
        try:
            self.text += self.decoder.decode(block, self.ended)
        except UnicodeDecodeError as error:
            self.line += self.text.count("\n") + error.object[: error.start].count(b"\n")
            raise
        return True

    def next(self) -> str:
        """The next character that is no white space, which is not taken; none at the end."""
        while True:
            while self.at < len(self.text):
                character = self.text[self.at]
                if character not in " \t\r\n":
                    return character
                self.line += character == "\n"
                self.at += 1
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        """Takes the next character."""
        if self.next() != character:
            raise json.JSONDecodeError(f"want '{character}'", "", 0)
        self.at += 1

    def value(self) -> tuple[int, Any]:
        """Takes a value: the line where it begins, and the value."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or not self._more():  # a number may go on
                    break
                continue
            except json.JSONDecodeError as error:
                if len(self.text) - self.at > self.most:
                    raise JsonError("a record is too long") from None
                if not self._more():
                    self.line += self.text.count("\n", self.at, error.pos)
                    raise
        found = self.text[self.at : end]
        _check_text(found, value)
        line, self.at = self.line, end
        self.line += found.count("\n")
        return line, value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise JsonError("a field is there twice")
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique)


def _check_text(text: str, value: Any) -> None:
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()


@contextmanager
def _refusals() -> Iterator[None]:
    """Whatever Python's reader raises, as JsonError; `from None`, since the cause may quote a secret."""
    try:
        yield
    except JsonError as error:
        raise JsonError(f"no valid JSON: {error}") from None
    except UnicodeError:
        raise JsonError("no valid UTF-8") from None
    except RecursionError:
        raise JsonError("no valid JSON: nested too deeply") from None
    except json.JSONDecodeError:
        raise JsonError("no valid JSON") from None
    except ValueError:  # Python converts no integer of so many digits
        raise JsonError("no valid JSON: an integer of too many digits") from None


def is_int(value: Any) -> bool:
    """An integer, of Python or numpy; a boolean is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """An integer or a float that a float can hold, of Python or numpy; a boolean is none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def is_flag(value: Any) -> bool:
    """true or false; 1 and "true" are neither."""
    return isinstance(value, bool)


def is_text(value: Any) -> bool:
    """A string, without half a surrogate pair."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def is_name(value: Any) -> bool:
    """A string or an integer."""
    return is_text(value) or is_int(value)


def list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A list or tuple of one kind."""
    return lambda value: isinstance(value, list | tuple) and all(map(kind, value))


def either(*kinds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """One of some kinds."""
    return lambda value: any(kind(value) for kind in kinds)


def is_null(value: Any) -> bool:
    """null, or None."""
    return value is None


def kind_in_words(value: Any) -> str:
    """Of what type a value is, in the words of JSON; the value itself is not quoted.

    >>> kind_in_words([0.5]), kind_in_words(None)
    ('a list whose first element is a number', 'null')
    """
    if isinstance(value, list | tuple) and value:
        return f"a list whose first element is {_kind(value[0])}"
    return "an empty list" if isinstance(value, list | tuple) else _kind(value)


def _kind(value: Any) -> str:
    kinds = ((is_null, "null"), (is_flag, "true or false"), (is_int, "an integer"), (is_number, "a number"))
    named = next((words for kind, words in kinds if kind(value)), None)
    if named is not None:
        return named
    return "a string" if isinstance(value, str) else "an object" if isinstance(value, Mapping) else "a list"


def not_wanted(name: str, words: str, value: Any) -> str:
    """What to say of a field that is there and is not what `words` want. The value is not quoted.

    >>> not_wanted("id", "a string or an integer", 0.5)
    "'id' must be a string or an integer; it is a number"
    >>> not_wanted("layers", "an integer from 1 to 8", 9)
    "'layers' must be an integer from 1 to 8"
    """
    first = words.partition(" of ")[0]  # of "a list of strings" what the whole is
    nouns = [_kind(value).removeprefix("a ").removeprefix("an "), *["number"] * is_int(value), *["'"] * is_text(value)]
    same = any(noun in first for noun in nouns)  # the type is right, and something in it is not
    return f"'{name}' must be {words}" + ("" if same else f"; it is {kind_in_words(value)}")


Types = Mapping[str, tuple[Callable[[Any], bool], str]]
"""What each field must be, and that in words: `{"width": (is_int, "an integer")}`."""


def wrong_field(fields: Mapping[str, Any], types: Types) -> str | None:
    """What is wrong with the first field of a wrong type, never quoting its value; None: nothing is.

    Fields that are not there, and fields that the table does not name, are not looked at.

    >>> wrong_field({"sequential": 1}, {"sequential": (is_flag, "true or false")})
    "'sequential' must be true or false; it is an integer"
    """
    for name, (kind, words) in types.items():
        if name in fields and not kind(fields[name]):
            return not_wanted(name, words, fields[name])
    return None
