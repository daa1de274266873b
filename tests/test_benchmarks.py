"""What the README says of speed is what was measured."""

from __future__ import annotations

from benchmarks.table import BEGIN, END, README, recorded, table


def test_the_readme_shows_the_recorded_figures() -> None:
    shown = README.read_text().split(BEGIN)[1].split(END)[0]
    assert shown == table(*recorded()), "run: python -m benchmarks.table"
