"""What the README says of speed is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.table import BEGIN, END, README, table

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "speed.json"


def test_the_readme_shows_the_recorded_figures() -> None:
    shown = README.read_text().split(BEGIN)[1].split(END)[0]
    assert shown == table(json.loads(RESULTS.read_text())), "run: python -m benchmarks.table"
