"""JSON read strictly, and the types of its fields: one reader and one kind of table for marks, cards and records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final


class JsonError(ValueError):
    """Text that is no JSON we take. The message says why, and quotes nothing of it. at: the index, if it is known."""

    def __init__(self, message: str, at: int | None = None) -> None:
        super().__init__(message)
        self.at = at


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
    data = source if isinstance(source, bytes) else source.read_bytes()
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


def array_items(text: str) -> Iterator[tuple[int, Any]]:
    """The elements of the JSON array that a text is, one by one, each with the index in the text where it begins.

    Raises:
        JsonError: as `load_json`, when it comes to the place, which it names; or the text goes on after the array.
    """
    at = 0
    try:
        with _refusals():
            at = _skip(text, _expect(text, _skip(text, 0), "["))
            if text[at : at + 1] != "]":
                while True:
                    value, end = _DECODER.raw_decode(text, at)
                    _check_text(text[at:end], value)
                    yield at, value
                    at = _skip(text, end)
                    if text[at : at + 1] == "]":
                        break
                    at = _skip(text, _expect(text, at, ","))
            at = _skip(text, at + 1)
            if at < len(text):
                raise JsonError("the text goes on after the array")
    except JsonError as error:
        raise JsonError(str(error), at if error.at is None else error.at) from None


def _skip(text: str, at: int) -> int:
    """The index of the next character that is no white space."""
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at


def _expect(text: str, at: int, character: str) -> int:
    if text[at : at + 1] != character:
        raise json.JSONDecodeError(f"want '{character}'", text, at)
    return at + 1


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
    except json.JSONDecodeError as error:
        raise JsonError("no valid JSON", error.pos) from None
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


Types = Mapping[str, tuple[Callable[[Any], bool], str]]
"""What each field must be, and that in words: `{"width": (is_int, "an integer")}`."""


def wrong_field(fields: Mapping[str, Any], types: Types) -> str | None:
    """What is wrong with the first field of a wrong type, never quoting its value; None: nothing is.

    Fields that are not there, and fields that the table does not name, are not looked at.

    >>> wrong_field({"sequential": 1}, {"sequential": (is_flag, "true or false")})
    "'sequential' must be true or false"
    """
    for name, (kind, words) in types.items():
        if name in fields and not kind(fields[name]):
            return f"'{name}' must be {words}"
    return None
