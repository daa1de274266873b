"""A mark on disk: the secret, the file's format and the card's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from watermark.errors import InputError, MarkError
from watermark.io import files
from watermark.io.fields import (
    JsonError,
    Types,
    either,
    is_int,
    is_null,
    is_text,
    list_of,
    load_object,
    wrong_field,
)
from watermark.io.files import open_to_read
from watermark.io.opening import MOST
from watermark.schemes import field_types
from watermark.schemes.chacha import SECRET_BYTES
from watermark.secret import Secret, SecretText, sealed

FORMAT: Final = "stillmark-mark/v1"
CARD_FORMAT: Final = "stillmark-card/v1"
MOST_BYTES: Final = 16 << 20
"""Bytes of a mark's or a card's file that are read."""

PARAMETERS: Final[Types] = {
    "width": (is_int, "an integer"),
    "label": (is_text, "a string"),
    "vocabulary_size": (either(is_null, is_int), "an integer, or null"),
    "exempt": (list_of(is_int), "a list of token ids"),
    "tokenizer": (either(is_null, is_text), "a string, or null"),
    "tokenizer_source": (either(is_null, is_text), "a string, or null"),
    "parent": (either(is_null, is_text), "a string, or null"),
}
"""What is stored of a mark beside its secret and its scheme, in a mark and in a card."""

OPTIONAL: Final = frozenset({"parent", "tokenizer_source"})
"""Those that only a mark file may have, and need not."""

_SHARED: Final = {"format": (is_text, "a string"), "prf": (is_text, "a string"), "scheme": (is_text, "a string")}
_CARD: Final[Types] = {**_SHARED, **PARAMETERS, "commitment": (is_text, "a string")}
_FILES: Final[Mapping[str, Types]] = {
    FORMAT: {**_SHARED, **PARAMETERS, "secret": (is_text, "a string")},
    CARD_FORMAT: _CARD,
}


def card_types(scheme: object) -> Types:
    """The fields of a card of a scheme, by its name."""
    return {**_CARD, **field_types(scheme)}


def parse_secret(text: str | bytes, length: int = SECRET_BYTES) -> Secret:
    """A secret of some bytes out of twice as many hex characters; surrounding white space is dropped.

    Raises:
        MarkError: anything else. The message never quotes the text.
    """
    text = SecretText((text.decode("latin-1") if isinstance(text, bytes) else text).strip())
    if len(text) != 2 * length or not all(c in "0123456789abcdefABCDEF" for c in text):
        raise MarkError(
            f"the secret must be {2 * length} hex characters; got {len(text)} characters",
            "make one with: openssl rand -hex 32" if length == SECRET_BYTES else "restore it from a copy",
        )
    return Secret(bytes.fromhex(text))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The fields of a mark or a card, each of its type; `what` names it in errors. Of another format: as they are.

    The secret of a mark is a `SecretText`.

    Raises:
        MarkError: the file cannot be read, holds no JSON object, or a field of a wrong type. The message quotes nothing
            of it.
    """
    return parse_fields(read_file(path, what), path, what)


def read_file(path: Path, what: str) -> SecretText:
    """The text of a mark or a card. Raises MarkError."""
    try:
        with open_to_read(path) as file:
            return SecretText(file.read(MOST_BYTES).decode("utf-8-sig"))
    except OSError as error:
        hint = _make_one(what) if isinstance(error, FileNotFoundError) else None
        raise MarkError(f"{path}: cannot read the {what}: {error.strerror or error}", hint) from None
    except UnicodeDecodeError:
        reason = "no valid UTF-8"
    # not within the block above: an exception keeps the one that was handled when it was raised, and that the text
    raise MarkError(f"{path}: not a {what}: {reason}", _make_one(what))


def _make_one(what: str) -> str:
    return f"make one with: stillmark mark {'publish' if what == 'card' else 'new'}"


def parse_fields(text: str, path: Path | str, what: str) -> dict[str, Any]:
    """As `read_json`, of a text."""
    try:
        body = _load(text)
    except JsonError as error:
        reason = str(error)
    else:
        return _checked(body, path, what)
    raise MarkError(f"{path}: not a {what}: {reason}", _make_one(what))


@sealed
def _load(text: str) -> dict[str, Any]:
    body = load_object(text.encode(errors="surrogatepass"))
    if isinstance(body.get("secret"), str):
        body["secret"] = SecretText(body["secret"])
    return body


@sealed
def _checked(body: dict[str, Any], path: Path | str, what: str) -> dict[str, Any]:
    wrong = wrong_field(body, {**_FILES.get(str(body.get("format")), {}), **field_types(body.get("scheme"))})
    if wrong is not None:
        raise MarkError(f"{path}: a field of this {what} is malformed: {wrong}", "restore it from a copy")
    return body


def check_label(label: str) -> None:
    """Raises MarkError if a label is not one line of text, which a list of labels could not name.

    The empty label passes: the format's test vectors derive a child for it.
    """
    if not is_text(label) or label != label.strip() or "\n" in label or "\r" in label:
        raise MarkError(
            "a label is one line of text, without white space at its ends", "a list of labels has one a line"
        )


def read_labels(path: Path) -> list[str]:
    """Labels from a text file, one a line, as they were derived; blank lines are left out.

    Raises:
        InputError: the file cannot be read, is no UTF-8, holds no label, one twice, or one that `Mark.child` refuses.
    """
    try:
        with open_to_read(path) as file:
            data = file.read(MOST + 1)
        if len(data) > MOST:
            raise InputError(path, 0, f"more than {MOST >> 20} MiB of labels", "try a part of them at a time")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(path, 0, f"cannot read the labels: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(path, 0, "no valid UTF-8", "want one label a line") from None
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        label = line.removesuffix("\r")  # and no more: a label is its exact characters
        if label in lines:
            raise InputError(path, number, f"label '{label}' was named before, in line {lines[label]}")
        if label.strip():
            try:
                check_label(label)
            except MarkError as error:
                raise InputError(path, number, str(error), error.hint) from None
            lines[label] = number
    if not lines:
        raise InputError(path, 0, "holds no labels", "want one label a line")
    return list(lines)


def write_new(path: Path, text: str, *, private: bool) -> None:
    """Write a mark or a card. Raises MarkError if the file exists, and InputError if it cannot be written."""
    with files.writing(path):
        try:
            files.create(path, Secret(text.encode()), private=private)
        except FileExistsError:
            raise MarkError(f"{path}: exists already", "choose another name; marks are never overwritten") from None
