"""JSONL, one record a line: the reader that all of our inputs go through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watermark.errors import InputError


@dataclass(frozen=True)
class Record:
    """One record as it was read. line: from 1; a row in Parquet."""

    path: Path
    line: int
    fields: dict[str, Any]

    def error(self, message: str, hint: str | None = None) -> InputError:
        return InputError(self.path, self.line, message, hint)


def read_jsonl(path: Path) -> Iterator[Record | InputError]:
    """The records of a JSONL file in order, blank lines left out; a malformed line comes as an InputError.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                reason = "no valid UTF-8" if isinstance(error, UnicodeDecodeError) else "no valid JSON"
                cut = "" if line.endswith(b"\n") else ", and the file ends within the line: was its writer killed?"
                yield InputError(path, number, reason + cut, "mend the line, or leave bad records out with --skip-bad")
                continue
            if isinstance(fields, dict):
                yield Record(path, number, fields)
            else:
                yield InputError(path, number, "a record must be a JSON object", "one object a line (JSONL)")
