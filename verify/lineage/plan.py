"""What will be tested, and at which level: fixed before the suspect is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from watermark import InputError
from watermark.io import files

WEIGHTS: Final = "weights"
SHUFFLED: Final = "weights, units shuffled"
MARK: Final = "mark"
PLANTED: Final = "planted answers"
CANARIES: Final = "canaries"
AGREEMENT: Final = "agreement"
LINES: Final = (WEIGHTS, SHUFFLED, MARK, PLANTED, CANARIES, AGREEMENT)
"""Every test of a verdict, in the order in which they are made."""

FORMAT: Final = "stillmark-plan/v1"


def is_mark(line: str) -> bool:
    """Whether a line of a plan is the test for a mark; of several marks each has its own, `mark NAME`."""
    return line == MARK or line.startswith(f"{MARK} ")


@dataclass(frozen=True)
class LineagePlan:
    """What will be tested and at which level: fixed before the suspect is looked at, and known by its digest.

    Attributes:
        lines: the tests, of LINES, in order; with several marks `mark NAME` for each.
        alpha: family-wise level of the verdict.
        inputs: SHA-256 of everything but the suspect that the tests use, by name.
        settings: numbers that the tests depend on, by name.
    """

    lines: tuple[str, ...]
    alpha: float
    inputs: dict[str, str]
    settings: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, 64 hex characters."""
        return hashlib.sha256(self._json().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "lines": list(self.lines),
            "alpha": self.alpha,
            "inputs": self.inputs,
            "settings": self.settings,
        }

    def fix(self, path: Path) -> bool:
        """Write the plan, if the file is not there; else see that it is the same. Returns whether it was written.

        Raises:
            InputError: the file holds another plan, or cannot be read or written.
        """
        text = self._json() + "\n"
        with files.writing(path):
            try:
                files.create(path, text.encode())
            except FileExistsError:
                pass
            else:
                return True
        try:
            same = path.read_text() == text
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(path, 0, f"cannot read the plan: {error}") from None
        if not same:
            raise InputError(
                path, 0, "holds another plan than this one", "a plan is made once, before the suspect is read"
            )
        return False

    def _json(self) -> str:
        return json.dumps({"format": FORMAT} | self.to_dict(), sort_keys=True)
