"""Cases of a target, one after the other, each from its own generator; and what failed, once for each place."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from watermark import StillmarkError

Case = Callable[[Random], object]
"""Makes one case and looks at it: whatever it raises is a finding."""

SLOW: Final = 10.0
"""Seconds of CPU time that a case may take."""


@dataclass(frozen=True)
class Place:
    """A folder with what targets need; the file of a case is written over by the next."""

    folder: Path

    def reads(self, read: Callable[[Path], object], data: bytes, name: str = "file.jsonl") -> None:
        """A reader reads a file with this content, or raises an error of ours."""
        path = self.folder / "case" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        with suppress(StillmarkError):
            read(path)


Target = Callable[[Place], Case]
"""Loads what all its cases need."""


@dataclass
class Report:
    """What came of a target's cases. failed: traceback and number of the first case, by the place of the error."""

    cases: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    failed: dict[str, tuple[int, str]] = field(default_factory=dict)


def look(case: Case, name: str, seed: int, first: int, last: int, report: Report) -> None:
    """Looks at the cases from `first` to before `last`. The same name, seed and number are the same case."""
    for number in range(first, last):
        begun = time.process_time()
        try:
            case(Random(f"{name}/{seed}/{number}"))
            if time.process_time() - begun > SLOW:
                raise TimeoutError(f"a case took {time.process_time() - begun:.0f} seconds")
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = f"{type(error).__name__} in {Path(frames[-1].filename).name}:{frames[-1].lineno}"
            report.failed.setdefault(where, (number, traceback.format_exc()))
        took = time.process_time() - begun
        report.seconds += took
        report.slowest = max(report.slowest, took)
        report.cases += 1
