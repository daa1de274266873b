"""What docs say is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.fingerprints import RESULTS, ROWS
from benchmarks.table import HERE, made


@pytest.mark.parametrize(
    ("file", "marks", "text"),
    made(),
    ids=["speed", "fingerprints", "tokenizers", "schemes", "engines", "evasions", "nulls"],
)
def test_docs_show_the_recorded_figures(file: Path, marks: tuple[str, str], text: str) -> None:
    before, _, rest = file.read_text().partition(marks[0])
    shown, _, after = rest.partition(marks[1])
    assert before
    assert after
    assert shown == text, "run: python -m benchmarks.table"


def test_the_matrix_is_whole() -> None:
    found = json.loads((HERE.parent / RESULTS).read_text())
    assert [row["model"] for row in found["table"]] == list(ROWS)
    for row in found["table"]:
        assert row["right"] == (row["verdict"] in ROWS[row["model"]].right)
        assert row["right"] or row["why"], "a wrong verdict says why"
