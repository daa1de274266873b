"""A mark on disk: the secret, the file's format and the card's."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any, Final

from watermark.errors import MarkError
from watermark.io import files

FORMAT: Final = "stillmark-mark/v1"


CARD_FORMAT: Final = "stillmark-card/v1"


SECRET_BYTES: Final = 32


def new_secret() -> bytes:
    """32 bytes from the operating system's generator."""
    return secrets.token_bytes(SECRET_BYTES)


def parse_secret(text: str) -> bytes:
    """A secret out of 64 hex characters; surrounding white space is dropped.

    Raises:
        MarkError: anything else. The message never quotes the text.
    """
    text = text.strip()
    if len(text) != 2 * SECRET_BYTES or not all(c in "0123456789abcdefABCDEF" for c in text):
        raise MarkError(
            f"the secret must be {2 * SECRET_BYTES} hex characters; got {len(text)} characters",
            "make one with: openssl rand -hex 32",
        )
    return bytes.fromhex(text)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file; MarkError, never quoting the content, if it is none."""
    try:
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise MarkError(f"{path}: cannot read the {what}: {error.strerror}") from None
    except ValueError:
        raise MarkError(
            f"{path}: not a {what}: no valid JSON", "make one with: stillmark mark new --out FILE"
        ) from None
    if not isinstance(body, dict):
        raise MarkError(f"{path}: not a {what}: no JSON object", "make one with: stillmark mark new --out FILE")
    return body


def _write_new(path: Path, body: dict[str, Any], mode: int) -> None:
    try:
        files.create(path, (json.dumps(body, indent=1) + "\n").encode(), mode)
    except FileExistsError:
        raise MarkError(f"{path}: exists already", "choose another name; marks are never overwritten") from None
    except OSError as error:
        raise MarkError(
            f"{path}: cannot write: {error.strerror}", "does the folder exist, and is it writable?"
        ) from None
