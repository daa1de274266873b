"""What the README says is what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from benchmarks.fingerprints import RESULTS, ROWS
from benchmarks.table import BEGIN, END, MODELS, README, fingerprints, recorded, table


@pytest.mark.parametrize(
    ("marks", "made"),
    [
        ((BEGIN, END), lambda: table(*recorded())),
        (MODELS, lambda: fingerprints(json.loads((README.parent / RESULTS).read_text()))),
    ],
)
def test_the_readme_shows_the_recorded_figures(marks: tuple[str, str], made: Callable[[], str]) -> None:
    shown = README.read_text().split(marks[0])[1].split(marks[1])[0]
    assert shown == made(), "run: python -m benchmarks.table"


def test_the_matrix_is_whole() -> None:
    found = json.loads((README.parent / RESULTS).read_text())
    assert [row["model"] for row in found["table"]] == list(ROWS)
    for row in found["table"]:
        assert row["right"] == (row["verdict"] in ROWS[row["model"]].right)
        assert row["right"] or row["why"], "a wrong verdict says why"
